"""The command line. Commands import what they need when they run, so that help is instant."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import typer

from ldm.cli import data, generate, train
from ldm.errors import UserError

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
app.add_typer(data.app, name="data")


def main() -> NoReturn:
    """Run the command line: status 0, 2 with one line on standard error, or 130 after an interrupt."""
    try:
        status = app(standalone_mode=False, prog_name="ldm")
    except UserError as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        print("ldm: interrupted", file=sys.stderr)
        _leave(130)
    except typer.Exit as request:
        _leave(request.exit_code)
    except Exception as error:
        # Typer's own click raises these for wrong options; it has no public name for them in every version.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            _fail(error.format_message())
        raise
    _leave(status if isinstance(status, int) else 0)


def _fail(message: str) -> NoReturn:
    print("ldm: " + " ".join(message.split()), file=sys.stderr)
    _leave(2)


def _leave(status: int) -> NoReturn:
    """End at once: tearing down torch's thread pools at interpreter exit costs time and can hang."""
    sys.stdout.flush()
    sys.stderr.flush()
    if "torch" in sys.modules and "torch.distributed" in sys.modules:
        import torch.distributed

        if torch.distributed.is_available() and torch.distributed.is_initialized() and status == 0:
            torch.distributed.destroy_process_group()
    os._exit(status) if status else sys.exit(0)
