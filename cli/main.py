"""The command line. Commands import what they need when they run, so that help is fast."""

from __future__ import annotations

import re
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

import ldm
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


def _print_version(wanted: bool) -> None:
    """Print the versions of ldm, PyTorch and Python, without importing PyTorch, and exit."""
    if wanted:
        python = ".".join(map(str, sys.version_info[:3]))
        print(f"ldm {ldm.__version__} (torch {metadata.version('torch')}, python {python})")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print versions and exit.")
    ] = False,
) -> None:
    """Train and run latent text-to-image diffusion models."""


def main() -> NoReturn:
    """Run the command line: exit with 0, with 2 and one line on standard error, or with 130 after an interrupt."""
    guard_streams()
    warnings.formatwarning = _format_warning
    command = typer.main.get_command(app)
    _prepare_help(command)
    try:
        status = command(_expand_home(sys.argv[1:]), standalone_mode=False, prog_name="ldm")
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
        _fail(error.format_message() + _usage_hint(command, error))
    sys.exit(status if isinstance(status, int) else 0)


def _usage_hint(command: Any, error: Any) -> str:
    """Return what to do about a wrong command line, if its error does not say so."""
    message = error.format_message()
    if "unexpected extra argument" in message and "--set" in sys.argv:
        return ": put quotes around values with spaces or brackets: --set 'a.b=[1, 2]'"
    if "requires an argument" in message:
        named = command.commands.get(next(iter(sys.argv[1:]), ""))
        options = [each for each in getattr(named, "params", ()) if error.option_name in each.opts]
        return "".join(f" {each.help}" for each in options if each.help)
    return ""


def _expand_home(words: list[str]) -> list[str]:
    """Expand `~/` in paths that the shell left alone: `--out=~/a`, `@~/prompts.txt` and quoted words."""
    return [re.sub(r"^(@|--[a-z-]+=|)~/", lambda match: f"{match[1]}{Path.home()}/", word) for word in words]


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
