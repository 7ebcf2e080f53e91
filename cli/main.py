"""The command line. Commands import what they need when they run, so that help is instant."""

from __future__ import annotations

import sys
import warnings
from typing import NoReturn

import typer

from ldm.cli import bench, cache, convert, data, direction, evaluate, generate, info, interpolate, train
from ldm.errors import UserError, UserNote

app = typer.Typer(
    name="ldm",
    help="Train and run latent text-to-image diffusion models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,  # plain help: importing rich takes longer than all else together
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
    """Run the command line: status 0, 2 with one line on standard error, or 130 after an interrupt."""
    warnings.formatwarning = _format_warning
    try:
        status = app(standalone_mode=False, prog_name="ldm")
    except UserError as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        print("ldm: interrupted", file=sys.stderr)
        sys.exit(130)
    except typer.Exit as request:
        sys.exit(request.exit_code)
    except Exception as error:
        # Wrong options: click's UsageError, which typer carries under a private name of its own in newer versions.
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":  # a group without a command: its message is the help
            print(error.format_message())
            sys.exit(2)
        _fail(error.format_message())
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str) -> NoReturn:
    print("ldm: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Notes to the user as one line of their own, other warnings as Python shows them."""
    if issubclass(category, UserNote):
        return f"ldm: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"
