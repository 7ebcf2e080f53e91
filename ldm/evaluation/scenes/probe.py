"""The probe: a small detector of the names, boxes and colours of objects in the built-in scenes.

Objects are peaks of heat maps, one map per concept, with a box and a colour at each peak (Zhou et al. 2019, "Objects as
points").
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.data.scenes.colours import THINGS as COLOURS
from ldm.data.scenes.vocabulary import first
from ldm.errors import UserError
from ldm.evaluation.features import resize
from ldm.storage.store import load_metadata, load_tensors, save_tensors

SIDE = 64  # pixels; other images are resized to it
STRIDE = 4  # pixels per cell of the maps
CELLS = SIDE // STRIDE
CONCEPTS = 80  # number of concepts, from the first
WIDTHS = (32, 64, 96, 128)  # channels at 32, 16, 8 and 4 cells per side
SEEN = 0.35  # least probability of an object
SAME_PLACE = 0.6  # intersection over union above which only the likelier of two objects is kept
Box = tuple[float, float, float, float]  # left, top, right, bottom, in sides of the image


@dataclass(frozen=True)
class Found:
    """A detected object."""

    name: str
    colour: str
    box: Box
    probability: float

    @property
    def centre(self) -> tuple[float, float]:
        """Centre of the box, in sides of the image."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    @property
    def size(self) -> float:
        """Longer side of the box, in sides of the image."""
        left, top, right, bottom = self.box
        return max(right - left, bottom - top)


class SceneProbe(nn.Module):
    """Network from images (B, 3, 64, 64) in [0, 1] to maps of logits, boxes and colours, each (B, ..., 16, 16)."""

    def __init__(self, concepts: int = CONCEPTS) -> None:
        super().__init__()
        a, b, c, d = WIDTHS
        self.names = tuple(concept.name for concept in first(concepts))
        self.fine = nn.Sequential(_layer(3, a, 2), _layer(a, b, 2), _Residual(b))
        self.middle = nn.Sequential(_layer(b, c, 2), _Residual(c), _Residual(c))
        self.coarse = nn.Sequential(_layer(c, d, 2), _Residual(d), _Residual(d))
        self.to_middle, self.to_fine = nn.Conv2d(d, c, 1), nn.Conv2d(c, b, 1)
        self.join = nn.Sequential(nn.BatchNorm2d(b), _Residual(b))
        self.heat, self.box = nn.Conv2d(b, concepts, 1), nn.Conv2d(b, 4, 1)
        self.colour = nn.Conv2d(b, len(COLOURS), 1)
        nn.init.constant_(self.heat.bias, -4.6)  # objects are rare: start at 1 %  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits of centres (B, concepts, 16, 16), boxes (B, 4, 16, 16) and logits of colours (B, 12, 16, 16).

        A box is the offset of the centre in its cell, and the logarithm of width and height in cells.
        """
        fine = self.fine(images)  # (B, 64, 16, 16)
        middle = self.middle(fine)  # (B, 96, 8, 8)
        middle = middle + F.interpolate(self.to_middle(self.coarse(middle)), scale_factor=2)
        whole = self.join(fine + F.interpolate(self.to_fine(middle), scale_factor=2))
        return self.heat(whole), self.box(whole), self.colour(whole)

    @torch.inference_mode()
    def find(self, images: np.ndarray) -> list[list[Found]]:
        """Detect the objects in images, bytes (n, H, W, 3), the likeliest first."""
        given = torch.from_numpy(images).permute(0, 3, 1, 2).to(self.heat.weight.device)
        heat, box, colour = (maps.float().cpu() for maps in self(resize(given, SIDE).float() / 255))
        heat = heat.sigmoid()
        peaks = (heat == F.max_pool2d(heat, 3, 1, 1)) & (heat > SEEN)
        found: list[list[Found]] = [[] for _ in images]
        for image, concept, row, column in peaks.nonzero().tolist():
            dx, dy, width, height = box[image, :, row, column].tolist()
            x, y = (column + dx) / CELLS, (row + dy) / CELLS
            half = (np.exp(width) / CELLS / 2, np.exp(height) / CELLS / 2)
            place = (x - half[0], y - half[1], x + half[0], y + half[1])
            painted = tuple(COLOURS)[int(colour[image, :, row, column].argmax())]
            probability = float(heat[image, concept, row, column])
            found[image].append(Found(self.names[concept], painted, place, probability))
        return [_likeliest(things) for things in found]


class _Residual(nn.Module):
    """Residual block of two convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _layer(channels, channels)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


def _layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def _likeliest(things: list[Found]) -> list[Found]:
    """Remove objects at the place of a likelier one."""
    kept: list[Found] = []
    for thing in sorted(things, key=lambda thing: -thing.probability):
        if all(overlap(thing.box, other.box) < SAME_PLACE for other in kept):
            kept.append(thing)
    return kept


def overlap(one: Box, other: Box) -> float:
    """Return the intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0.0) * max(height, 0.0)
    return both / (_area(one) + _area(other) - both)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def save_probe(probe: SceneProbe, path: Path, facts: dict[str, str]) -> None:
    """Write the weights in half precision, with facts about their training."""
    tensors = {name: tensor.half() for name, tensor in probe.state_dict().items() if tensor.is_floating_point()}
    save_tensors(path, tensors, facts | {"concepts": str(len(probe.names))})


@cache
def load_probe(path: Path | None = None) -> SceneProbe:
    """Load the installed probe, or one from a file."""
    path = path or _shipped()
    tensors = load_tensors(path)
    facts = load_metadata(path)
    probe = SceneProbe(int(facts["concepts"]))
    kept = probe.state_dict()
    counters = {name: tensor for name, tensor in kept.items() if not tensor.is_floating_point()}
    try:
        probe.load_state_dict({name: tensor.float() for name, tensor in tensors.items()} | counters)
    except RuntimeError as error:
        raise UserError(f"{path} is not a checkpoint of this probe: train it again (docs/evaluation.md)") from error
    return probe.eval().requires_grad_(False)


def _shipped() -> Path:
    import ldm.weights

    return Path(next(iter(ldm.weights.__path__))) / "scene-probe" / "probe.safetensors"
