"""Train the probe of the scene score: `python -m ldm.evaluation.scenes.training --out FOLDER`."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.data.cache import default_cache
from ldm.devices import computes_bfloat16
from ldm.evaluation.scenes.augment import augment
from ldm.evaluation.scenes.examples import Examples, make_examples
from ldm.evaluation.scenes.probe import CELLS, CONCEPTS, SIDE, SceneProbe, save_probe

PART = 2000  # examples per part; each part has its seed
LEAST_SPREAD = 0.7  # standard deviation of a small object's peak in the heat map, cells


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Options of the probe's training."""

    seed: int = 8_000_000  # far from the seeds of data sets
    parts: int = 8
    concepts: int = CONCEPTS
    steps: int = 4000
    batch_size: int = 64
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    weight_decay: float = 0.02


def train_probe(recipe: Recipe, device: torch.device, cache: Path | None = None) -> SceneProbe:
    """Train a probe; a pure function of recipe and machine."""
    examples = read_examples(recipe, cache or default_cache())
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    probe = SceneProbe(recipe.concepts).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(probe.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, recipe.steps, pct_start=recipe.warmup_steps / recipe.steps
    )
    start = time.monotonic()
    for step in range(1, recipe.steps + 1):
        numbers = torch.randint(len(examples.images), (recipe.batch_size,), generator=generator).numpy()
        images = torch.from_numpy(examples.images[numbers]).permute(0, 3, 1, 2).float() / 255
        images, things = augment(images, torch.from_numpy(examples.things[numbers]), generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=computes_bfloat16(device)):
            maps = probe(images.to(device, memory_format=torch.channels_last))
        loss = loss_of(maps, things.to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(probe.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if step % 100 == 0:
            print(f"step {step:,} of {recipe.steps:,}  loss {loss:.3f}  {time.monotonic() - start:.0f} s", flush=True)
    return probe.eval()


def read_examples(recipe: Recipe, cache: Path) -> Examples:
    """Return the recipe's examples, rendered in parts on all cores and cached."""
    parts = []
    for part in range(recipe.parts):
        path = cache / "scene-probe" / f"{recipe.seed + part}-{PART}-{SIDE}-{recipe.concepts}.npz"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            made = make_examples(recipe.seed + part, PART, SIDE, recipe.concepts)
            work = path.with_suffix(".tmp.npz")
            np.savez(work, images=made.images, things=made.things)
            work.replace(path)
        with np.load(path) as file:
            parts.append(Examples(file["images"], file["things"]))
    return Examples(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def loss_of(maps: tuple[Tensor, Tensor, Tensor], things: Tensor) -> Tensor:
    """Focal loss of the heat maps (Zhou et al. 2019, equation 1), plus losses of boxes and colours at the peaks.

    Args:
        maps: output of the probe.
        things: rows (B, 6, 6) as in `Examples`.
    """
    heat, box, colour = (each.float() for each in maps)
    image, slot = torch.nonzero(things[..., 0] >= 0, as_tuple=True)
    rows = things[image, slot]
    concept = rows[:, 0].long()
    x, y = (rows[:, 2] + rows[:, 4]) / 2 * CELLS, (rows[:, 3] + rows[:, 5]) / 2 * CELLS
    width, height = (rows[:, 4] - rows[:, 2]) * CELLS, (rows[:, 5] - rows[:, 3]) * CELLS
    column, row = x.long().clamp(0, CELLS - 1), y.long().clamp(0, CELLS - 1)
    points = _points(column, row, torch.maximum(width, height))  # (T, 16, 16)
    maps_of = (image * heat.shape[1] + concept)[:, None].expand(-1, CELLS * CELLS)
    wanted = heat.new_zeros(heat.shape[0] * heat.shape[1], CELLS * CELLS)
    wanted = wanted.scatter_reduce(0, maps_of, points.flatten(1), "amax").view_as(heat)
    places = torch.stack([x - column, y - row, width.log(), height.log()], dim=1)
    found = box[image, :, row, column]
    painted = F.cross_entropy(
        colour[image, :, row, column], rows[:, 1].long(), ignore_index=-1, reduction="sum", label_smoothing=0.05
    )
    count = max(len(rows), 1)
    return (_focal(heat, wanted) + F.l1_loss(found, places, reduction="sum") + 0.5 * painted) / count


def _points(column: Tensor, row: Tensor, size: Tensor) -> Tensor:
    """Return Gaussians around cells with maximum 1, wider for larger objects."""
    cells = torch.arange(CELLS, device=size.device)
    across = (cells - column[:, None]) ** 2
    down = (cells - row[:, None]) ** 2
    spread = (size / 8).clamp(min=LEAST_SPREAD)[:, None, None]
    return torch.exp(-(across[:, None, :] + down[:, :, None]) / (2 * spread**2))


def _focal(logits: Tensor, wanted: Tensor) -> Tensor:
    """Sum the focal loss over all cells, with alpha 2 and beta 4."""
    likely = logits.sigmoid()
    at_points = (1 - likely) ** 2 * -F.logsigmoid(logits)
    elsewhere = (1 - wanted) ** 4 * likely**2 * -F.logsigmoid(-logits)
    return torch.where(wanted == 1, at_points, elsewhere).sum()


def main() -> None:
    """Train the probe and write `probe.safetensors` with the recipe in its header."""
    parser = argparse.ArgumentParser(description="Train the probe of the scene score.")
    parser.add_argument("--out", type=Path, default=Path("weights/scene-probe"))
    parser.add_argument("--parts", type=int, default=Recipe.parts, help=f"parts of {PART} examples")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    recipe = Recipe(parts=options.parts, steps=options.steps)
    probe = train_probe(recipe, torch.device(options.device))
    options.out.mkdir(parents=True, exist_ok=True)
    save_probe(probe, options.out / "probe.safetensors", {name: str(value) for name, value in asdict(recipe).items()})


if __name__ == "__main__":
    main()
