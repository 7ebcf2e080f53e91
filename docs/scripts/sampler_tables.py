"""Measure FID and KID of samplers: the DDIM paper's table (Song et al. 2021, table 1), and samplers with few calls.

    python docs/scripts/sampler_tables.py ddim --samples 300 --seeds 3 --table docs/ddim_table.md
    python docs/scripts/sampler_tables.py guided-ddim --samples 300 --seeds 3 --table docs/guided_ddim_table.md
    python docs/scripts/sampler_tables.py few --samples 200 --seeds 1 --table docs/few_steps_table.md

Each measured cell adds a line of JSON to the results. A repeated command, also with more columns or seeds, measures
only the missing cells. The table is updated after every cell. All cells of a seed use the same captions and noise.
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

import torch

from ldm import TextToImage
from ldm.config.data import DataConfig
from ldm.data.cache import default_cache
from ldm.data.sources import Source, open_indexed
from ldm.errors import UserError
from ldm.evaluation.distances import FeatureSet, fid, kid
from ldm.evaluation.evaluate import image_side
from ldm.evaluation.features import OFFLINE, Features, make_features
from ldm.evaluation.reading import FeatureReader
from ldm.evaluation.reference_statistics import read_reference
from ldm.evaluation.samples import generate_through
from ldm.generation import Request
from ldm.processes import ProcessShare


@dataclass(frozen=True)
class SamplerOptions:
    """A row of a table: a sampler, its eta and its spacing; None: the defaults of the sampler and the model."""

    sampler: str
    eta: float | None = None
    spacing: str | None = None

    def steps(self, calls: int, zero_signal: bool) -> int:
        """Return the number of steps that take `calls` network calls, or one less."""
        if self.sampler == "heun":
            return (calls + 1 + zero_signal) // 2
        return calls - 1 + zero_signal if self.sampler == "plms" else calls


@dataclass(frozen=True)
class Study:
    """Guidance scale, columns and rows of a table."""

    guidance_scale: float
    calls: tuple[int, ...]  # default columns
    rows: dict[str, SamplerOptions]


FRESH_NOISE = {f"eta {eta:g}": SamplerOptions("ddim", eta) for eta in (0, 0.2, 0.5, 1)} | {
    "sigma-hat": SamplerOptions("ddpm-large")
}
STUDIES = {
    "ddim": Study(guidance_scale=1.0, calls=(10, 20), rows=FRESH_NOISE),
    "guided-ddim": Study(guidance_scale=3.0, calls=(10, 20), rows=FRESH_NOISE),
    "few": Study(
        guidance_scale=3.0,
        calls=(4, 6, 8, 10, 15, 20, 30),
        rows={
            name: SamplerOptions(name)
            for name in ("ddim", "dpmpp-2m", "unipc", "heun", "plms", "ddpm", "dpmpp-2m-sde", "lcm")
        }
        | {
            f"{name}, {spacing}": SamplerOptions(name, None, spacing)
            for name in ("ddim", "dpmpp-2m")
            for spacing in ("karras",)
        },
    ),
}


@dataclass(frozen=True)
class Cell:
    """One measurement: its conditions and its place in the table."""

    study: str
    model: str
    dtype: str  # of the networks
    samples: int
    images: int  # in the reference statistics
    concepts: int | None  # of the scenes
    calls: int  # network calls per image
    row: str
    seed: int

    def request(self, captions: Sequence[str], batch_size: int, zero_signal: bool) -> Request:
        """Return the request for the images of this cell."""
        study = STUDIES[self.study]
        options = study.rows[self.row]
        return Request(
            prompts=tuple(captions),
            guidance_scale=study.guidance_scale,
            num_inference_steps=options.steps(self.calls, zero_signal),
            sampler=options.sampler,
            eta=options.eta,
            spacing=options.spacing,
            seed=self.seed * self.samples,  # seed of the first image; seeds share no noise
            batch_size=batch_size,
        )


@dataclass(frozen=True)
class Results:
    """Measured cells in a file of JSON lines."""

    path: Path

    def read(self) -> dict[Cell, dict[str, float]]:
        """Read the measured cells."""
        if not self.path.is_file():
            return {}
        records = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        return {Cell(**record["cell"]): record["found"] for record in records}

    def append(self, cell: Cell, found: dict[str, float]) -> None:
        """Append a cell."""
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"cell": asdict(cell), "found": found}) + "\n")


def distinct_captions(source: Source, count: int) -> list[str]:
    """Return `count` captions: first captions of all images, then second ones, and so on; repeat only after all."""
    by_rank = zip_longest(*(source.captions(number) for number in range(len(source))))
    unique = dict.fromkeys(caption for rank in by_rank for caption in rank if caption is not None)
    return list(islice(cycle(unique), count))


def measure(
    pipe: TextToImage, cell: Cell, captions: Sequence[str], features: Features, reference: FeatureSet, batch_size: int
) -> dict[str, float]:
    """Measure FID, KID and CPU seconds of a cell."""
    began = time.process_time()
    reader = FeatureReader(cell.samples, features)
    request = cell.request(captions, batch_size, zero_signal=bool(pipe.schedule.alpha[-1] == 0))
    generate_through(pipe, pipe.resolve(request), [reader], ProcessShare())
    sampled = FeatureSet(reader.stacked(ProcessShare()))
    return fid(sampled, reference) | kid(sampled, reference) | {"seconds": round(time.process_time() - began, 1)}


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """Yield the cells, seed by seed."""
    for seed in range(options.seeds):
        for calls in options.calls or STUDIES[options.study].calls:
            for row in options.rows or STUDIES[options.study].rows:
                yield Cell(
                    study=options.study,
                    model=options.model,
                    dtype=options.dtype,
                    samples=options.samples,
                    images=options.images,
                    concepts=options.concepts,
                    calls=calls,
                    row=row,
                    seed=seed,
                )


def table(found: dict[Cell, dict[str, float]], like: Cell, features: str) -> str:
    """Format mean and standard deviation over seeds as Markdown, for cells with the conditions of `like`."""
    alike = {
        cell: values
        for cell, values in found.items()
        if replace(cell, calls=like.calls, row=like.row, seed=like.seed) == like
    }
    columns = sorted({cell.calls for cell in alike})
    study = STUDIES[like.study]
    parts = [
        f"Model `{like.model}` in {like.dtype}, guidance {study.guidance_scale:g}, {like.samples} images of held-out "
        f"captions a cell and seed against {like.images} held-out images, features {features} (not comparable with "
        "published FID). "
        "Columns: network calls an image, which are the steps of all samplers but heun, where a step has two."
    ]
    for name, title, scale in (("fid", "FID", 1), ("kid", "KID x 1000", 1000)):
        lines = [f"| {title} | " + " | ".join(map(str, columns)) + " |", "|---" * (1 + len(columns)) + "|"]
        for row in study.rows:
            values = [
                [scale * one[name] for cell, one in alike.items() if (cell.calls, cell.row) == (calls, row)]
                for calls in columns
            ]
            if any(values):
                lines.append(f"| {row} | " + " | ".join(map(_spread, values)) + " |")
        parts.append("\n".join(lines))
    parts.append("Mean and standard deviation over seeds; the number of seeds is in parentheses.")
    return "\n\n".join(parts) + "\n"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation} ({len(values)})"


def run(options: argparse.Namespace) -> None:
    """Measure what is missing and write the table."""
    unknown = [row for row in options.rows or () if row not in STUDIES[options.study].rows]
    if unknown:
        raise UserError(f"no row {unknown[0]!r}: there are {', '.join(map(repr, STUDIES[options.study].rows))}")
    pipe = TextToImage.from_pretrained(options.model, getattr(torch, options.dtype))
    features = make_features(OFFLINE)
    side, images = image_side(pipe), options.images
    scenes = {"num": max(images, options.samples), "concepts": options.concepts}
    source = open_indexed("scenes", DataConfig(size=side, scenes=scenes), "test")
    reference, _ = read_reference(source, side, images, features.to(pipe.device), options.statistics)
    captions = distinct_captions(source, options.samples)
    print(f"{len(set(captions))} of {len(captions)} captions are distinct", file=sys.stderr)
    results = Results(options.results)
    found = results.read()
    wanted = list(cells(options))
    for cell in wanted:
        if cell not in found:
            found[cell] = measure(pipe, cell, captions, features, reference, options.batch_size)
            results.append(cell, found[cell])
            print(cell, found[cell], file=sys.stderr, flush=True)
        options.table.write_text(table(found, wanted[0], OFFLINE), encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("study", choices=STUDIES)
    found.add_argument("--model", default="emoji")
    found.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the model's networks")
    found.add_argument("--samples", type=int, default=1000, help="images per cell and seed")
    found.add_argument("--seeds", type=int, default=3)
    found.add_argument("--calls", type=int, nargs="+", help="columns: network calls per image")
    found.add_argument("--rows", nargs="+", help="rows to measure (default: all)")
    found.add_argument("--images", type=int, default=5000, help="held-out images in the reference statistics")
    found.add_argument("--concepts", type=int, default=80, help="concepts of the scenes, as in training")
    found.add_argument("--batch-size", type=int, default=50)
    found.add_argument("--results", type=Path, default=Path("sampler-tables.jsonl"))
    found.add_argument("--table", type=Path, default=Path("sampler-tables.md"))
    found.add_argument("--statistics", type=Path, default=default_cache() / "sampler-tables.safetensors")
    return found


if __name__ == "__main__":
    try:
        run(parser().parse_args())
    except UserError as error:
        sys.exit(f"sampler_tables: {error}")
