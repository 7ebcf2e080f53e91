"""The DDIM paper's table on a model of ours (Song et al. 2021, table 1): quality against steps and fresh noise.

    python docs/ddim_table.py --samples 1000 --seeds 3 --results ddim.jsonl --table docs/ddim_table.md

Every cell is finished before the next one starts, and stands in the results as a line of JSON. What stands there is
not drawn again, so that the command may be interrupted and given again, with more steps or seeds too. The table is
written anew after every cell. All cells of a seed draw the same captions from the same noise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice, zip_longest
from pathlib import Path

from ldm import TextToImage
from ldm.config import DataConfig, ScenesConfig
from ldm.data.cache import default_cache
from ldm.data.sources import Source, open_indexed
from ldm.errors import UserError
from ldm.evaluation.distances import FeatureSet, fid, kid
from ldm.evaluation.evaluate import picture_side
from ldm.evaluation.features import OFFLINE, Features, make_features
from ldm.evaluation.reading import FeatureReader
from ldm.evaluation.samples import draw_through
from ldm.evaluation.statistics import read_reference
from ldm.pipeline import Request
from ldm.processes import ProcessShare

SIGMA_HAT = "sigma-hat"  # the paper's name of DDPM's large variance
ROWS = ("0", "0.2", "0.5", "1", SIGMA_HAT)


@dataclass(frozen=True)
class Cell:
    """One measurement: what must be equal for two of them to be compared, and its place in the table."""

    model: str
    samples: int
    pictures: int  # of the data, in the reference statistics
    concepts: int | None  # of the scenes
    steps: int
    noise: str  # an eta, or sigma-hat
    seed: int

    def request(self, captions: Sequence[str], batch_size: int) -> Request:
        """The pictures to draw, without guidance."""
        large = self.noise == SIGMA_HAT
        return Request(
            prompts=tuple(captions),
            guidance_scale=1.0,
            num_inference_steps=self.steps,
            sampler="ddpm-large" if large else "ddim",
            eta=None if large else float(self.noise),
            seed=self.seed * self.samples,  # of the first picture: no two seeds share noise
            batch_size=batch_size,
        )


@dataclass(frozen=True)
class Results:
    """Measured cells, one a line of JSON."""

    path: Path

    def read(self) -> dict[Cell, dict[str, float]]:
        """What has been measured so far."""
        if not self.path.is_file():
            return {}
        records = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        return {Cell(**record["cell"]): record["found"] for record in records}

    def append(self, cell: Cell, found: dict[str, float]) -> None:
        """Add a cell at once."""
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"cell": asdict(cell), "found": found}) + "\n")


def distinct_captions(source: Source, count: int) -> list[str]:
    """Captions of a source, all pictures' first ones before their second ones; none twice before each was taken."""
    by_rank = zip_longest(*(source.captions(number) for number in range(len(source))))
    unique = dict.fromkeys(caption for rank in by_rank for caption in rank if caption is not None)
    return list(islice(cycle(unique), count))


def measure(
    pipe: TextToImage, cell: Cell, captions: Sequence[str], features: Features, reference: FeatureSet, batch_size: int
) -> dict[str, float]:
    """FID and KID of a cell's pictures, and the seconds that drawing and measuring took."""
    began = time.perf_counter()
    reader = FeatureReader(cell.samples, features)
    draw_through(pipe, pipe.settle(cell.request(captions, batch_size)), [reader], ProcessShare())
    drawn = FeatureSet(reader.gathered(ProcessShare()))
    return fid(drawn, reference) | kid(drawn, reference) | {"seconds": round(time.perf_counter() - began, 1)}


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """All cells, every one of the first seed before those of the second."""
    for seed in range(options.seeds):
        for steps in options.steps:
            for noise in ROWS:
                yield Cell(options.model, options.samples, options.pictures, options.concepts, steps, noise, seed)


def table(found: dict[Cell, dict[str, float]], like: Cell, features: str) -> str:
    """Mean and standard deviation over seeds as markdown, of the cells that are comparable with one."""
    alike = {
        cell: values
        for cell, values in found.items()
        if replace(cell, steps=like.steps, noise=like.noise, seed=like.seed) == like
    }
    steps = sorted({cell.steps for cell in alike})
    parts = [
        f"Model `{like.model}`, guidance 1, {like.samples} pictures of held-out captions a cell and seed against "
        f"{like.pictures} held-out pictures, features {features} (not comparable with published FID)."
    ]
    for name, title, scale in (("fid", "FID", 1), ("kid", "KID x 1000", 1000)):
        lines = [
            f"| {title} | " + " | ".join(f"{count} steps" for count in steps) + " |",
            "|---" * (1 + len(steps)) + "|",
        ]
        for noise in ROWS:
            values = [
                [scale * one[name] for cell, one in alike.items() if (cell.steps, cell.noise) == (count, noise)]
                for count in steps
            ]
            label = noise if noise == SIGMA_HAT else f"eta {noise}"
            lines.append(f"| {label} | " + " | ".join(map(_spread, values)) + " |")
        parts.append("\n".join(lines))
    seeds = len({cell.seed for cell in alike})
    parts.append(
        f"Mean and standard deviation over {seeds} seeds or, while it is being measured, as many as in brackets."
    )
    return "\n\n".join(parts) + "\n"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation} ({len(values)})"


def run(options: argparse.Namespace) -> None:
    """Measure what is missing and write the table."""
    pipe, features = TextToImage.from_pretrained(options.model), make_features(OFFLINE)
    side, pictures = picture_side(pipe), options.pictures
    scenes = ScenesConfig(num=max(pictures, options.samples), concepts=options.concepts)
    source = open_indexed("scenes", DataConfig(size=side, scenes=scenes), "test")
    reference, _ = read_reference(source, side, pictures, features.to(pipe.device), options.statistics)
    captions = distinct_captions(source, options.samples)
    print(f"{len(set(captions))} of {len(captions)} captions are distinct", file=sys.stderr)
    results = Results(options.results)
    found = results.read()
    wanted = list(cells(options))
    for cell in wanted:
        if cell not in found:
            found[cell] = measure(pipe, cell, captions, features, reference, options.batch_size)
            results.append(cell, found[cell])
            print(cell, found[cell], file=sys.stderr)
        options.table.write_text(table(found, wanted[0], OFFLINE), encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--model", default="emoji")
    found.add_argument("--samples", type=int, default=1000, help="pictures of a cell and seed")
    found.add_argument("--seeds", type=int, default=3)
    found.add_argument("--steps", type=int, nargs="+", default=[10, 20])
    found.add_argument("--pictures", type=int, default=5000, help="held-out pictures in the reference statistics")
    found.add_argument("--concepts", type=int, default=80, help="of the scenes: those that the model was trained on")
    found.add_argument("--batch-size", type=int, default=50)
    found.add_argument("--results", type=Path, default=Path("ddim.jsonl"))
    found.add_argument("--table", type=Path, default=Path("ddim_table.md"))
    found.add_argument("--statistics", type=Path, default=default_cache() / "ddim-reference.safetensors")
    return found


if __name__ == "__main__":
    try:
        run(parser().parse_args())
    except UserError as error:
        sys.exit(f"ddim_table: {error}")
