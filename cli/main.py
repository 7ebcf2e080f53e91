"""The command line. Commands import what they need when they run, so that help is fast."""

from __future__ import annotations

import sys
import warnings
from typing import Any, NoReturn

import typer

from ldm.cli import bench, cache, convert, data, direction, evaluate, generate, info, interpolate, train
from ldm.cli.streams import guard_streams
from ldm.errors import UserError, UserNote

app = typer.Typer(
    name="ldm",
    help="Train and run latent text-to-image diffusion models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(generate.generate)
app.command("train-vae")(train.train_vae)
app.command("train-unet")(train.train_unet)
app.command("train-classifier")(train.train_classifier)
app.command()(cache.cache)
app.command()(interpolate.interpolate)
app.command()(evaluate.evaluate)
app.command()(evaluate.reconstruct)
app.command()(convert.convert)
app.command()(info.info)
app.command()(bench.bench)
app.add_typer(data.app, name="data")
app.add_typer(direction.app, name="direction")


def main() -> NoReturn:
    """Run the command line: exit with 0, with 2 and one line on standard error, or with 130 after an interrupt."""
    guard_streams()
    warnings.formatwarning = _format_warning
    command = typer.main.get_command(app)
    _prepare_help(command)
    try:
        status = command(standalone_mode=False, prog_name="ldm")
        sys.stdout.flush()
    except UserError as error:
        _fail(str(error))
    except PermissionError as error:
        _fail(f"no permission for {error.filename}: {error.strerror}")
    except (KeyboardInterrupt, typer.Abort):
        print("ldm: interrupted", file=sys.stderr)
        sys.exit(130)
    except typer.Exit as request:
        sys.exit(request.exit_code)
    except Exception as error:
        # Wrong options: click's UsageError, of which newer versions of typer have a private copy.
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":  # a group without a command: the message is the help
            print(error.format_message())
            sys.exit(2)
        _fail(error.format_message())
    sys.exit(status if isinstance(status, int) else 0)


def _prepare_help(command: Any) -> None:
    """Print the help of groups without rich, which takes long to import, and the help of commands with it.

    Brackets such as `[default: 3]` are escaped, which rich would take for styles.
    """
    commands = getattr(command, "commands", None)
    if commands is not None:
        command.rich_markup_mode = None
        for each in commands.values():
            each.short_help = each.short_help or each.help  # click cuts only what it takes from `help`
            _prepare_help(each)
        return
    for each in (command, *command.params):
        if getattr(each, "help", None):
            each.help = each.help.replace("[", "\\[")


def _fail(message: str) -> NoReturn:
    print("ldm: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format notes to the user as one line, other warnings as Python does."""
    if issubclass(category, UserNote):
        return f"ldm: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"
