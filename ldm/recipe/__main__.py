"""`python -m ldm.recipe`: train and evaluate the built-in model from scratch, in one command that can be resumed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ldm import config as configuration
from ldm.errors import UserError
from ldm.evaluation.plan import Plan
from ldm.recipe.build_model import Order, make
from ldm.recipe.sweep import Curves
from ldm.recipe.timetable import Timetable
from ldm.storage.text import read_text
from ldm.training.runs.stop import parse_duration


def main() -> int:
    """Return the exit status. 0: finished. 3: the time is up, work remains. 2: user error. 130: interrupted."""
    arguments = _parser().parse_args()
    try:
        return _run(arguments)
    except UserError as error:
        print(f"ldm.recipe: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ldm.recipe: interrupted, --resume continues", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace) -> int:
    if (arguments.out / "times.json").is_file() and not arguments.resume:
        raise UserError(
            f"{arguments.out} contains an unfinished model: continue it with --resume, or choose another --out"
        )
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the folder {arguments.out}: {error.strerror}") from error
    prompts = () if arguments.prompts is None else tuple(read_text(arguments.prompts).splitlines())
    curves = Curves(arguments.samples, arguments.curve_samples, tuple(arguments.metrics.split(",")))
    Plan(metrics=curves.metrics, samples=curves.samples)  # raises for invalid metrics before anything is trained
    config = configuration.load(arguments.config, arguments.settings)
    order = Order(config, arguments.out, curves, prompts, arguments.shard_size * 2**20, arguments.batch_size)
    times = Timetable(
        arguments.out / "times.json",
        None if arguments.total_time is None else parse_duration(arguments.total_time),
        None if arguments.max_time is None else parse_duration(arguments.max_time),
    )
    done = make(order, times)
    spent = "  ".join(f"{part} {seconds:,.0f} s" for part, seconds in times.spent.items())
    print(f"{'finished' if done else 'time is up, --resume continues'}: {arguments.out}  {spent}", flush=True)
    return 0 if done else 3


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ldm.recipe", description="Train and evaluate the built-in model from scratch."
    )
    parser.add_argument("config", help="a named configuration or a YAML file, such as emoji/gpu")
    parser.add_argument("--out", type=Path, required=True, help="folder of all results")
    parser.add_argument("--total-time", help="of all commands together, such as 27m: schedules end with it")
    parser.add_argument("--max-time", help="of this command, such as 9m")
    parser.add_argument("--resume", action="store_true", help="continue the work in --out")
    parser.add_argument("--samples", type=int, default=1000, help="images of the test")
    parser.add_argument("--curve-samples", type=int, default=250, help="images at each point of the curves")
    parser.add_argument("--metrics", default="scenes,fid,rfid,psnr,ssim", help="of the test, as in `ldm evaluate`")
    parser.add_argument("--prompts", type=Path, help="file of prompts for grid.png, one a line")
    parser.add_argument("--shard-size", type=int, default=15, help="MiB of a file of weights")
    parser.add_argument("--batch-size", type=int, default=32, help="images generated at a time")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="A.B=C", help="as for training")
    return parser


if __name__ == "__main__":
    sys.exit(main())
