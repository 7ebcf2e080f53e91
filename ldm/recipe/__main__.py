"""`python -m ldm.recipe`: the built-in model from nothing, in one command that goes on where it stopped."""

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
from ldm.training.runs.stop import parse_duration


def main() -> int:
    """Status 0: all is done. 3: the time ended before the work. 2: for the user to mend. 130: interrupted."""
    told = _parser().parse_args()
    try:
        return _run(told)
    except UserError as error:
        print(f"ldm.recipe: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ldm.recipe: interrupted, --resume goes on", file=sys.stderr)
        return 130


def _run(told: argparse.Namespace) -> int:
    if (told.out / "times.json").is_file() and not told.resume:
        raise UserError(f"{told.out} holds a model in the making: go on with --resume, or choose another --out")
    try:
        told.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {told.out}: {error.strerror}") from error
    prompts = () if told.prompts is None else tuple(told.prompts.read_text(encoding="utf-8").splitlines())
    curves = Curves(told.samples, told.curve_samples, tuple(told.metrics.split(",")))
    Plan(metrics=curves.metrics, samples=curves.samples)  # refuses what cannot be measured before anything is trained
    config = configuration.load(told.config, told.settings)
    order = Order(config, told.out, curves, prompts, told.shard_size * 2**20, told.batch_size)
    times = Timetable(
        told.out / "times.json",
        None if told.total_time is None else parse_duration(told.total_time),
        None if told.max_time is None else parse_duration(told.max_time),
    )
    done = make(order, times)
    spent = "  ".join(f"{part} {seconds:,.0f} s" for part, seconds in times.spent.items())
    print(f"{'finished' if done else 'time is up, --resume goes on'}: {told.out}  {spent}", flush=True)
    return 0 if done else 3


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ldm.recipe", description="Make the built-in model from nothing.")
    parser.add_argument("config", help="a named configuration or a YAML file, such as emoji/gpu")
    parser.add_argument("--out", type=Path, required=True, help="folder of everything that is made")
    parser.add_argument("--total-time", help="of all commands together, such as 27m: schedules end with it")
    parser.add_argument("--max-time", help="of this command, such as 9m")
    parser.add_argument("--resume", action="store_true", help="go on with what --out holds")
    parser.add_argument("--samples", type=int, default=1000, help="images of the test")
    parser.add_argument("--curve-samples", type=int, default=250, help="images at each point of the curves")
    parser.add_argument("--metrics", default="scenes,fid,rfid,psnr,ssim", help="of the test, as in `ldm evaluate`")
    parser.add_argument("--prompts", type=Path, help="file of prompts for grid.png, one a line")
    parser.add_argument("--shard-size", type=int, default=15, help="MiB of a file of weights")
    parser.add_argument("--batch-size", type=int, default=32, help="images drawn at a time")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="A.B=C", help="as for training")
    return parser


if __name__ == "__main__":
    sys.exit(main())
