"""Random masks for inpainting, as people paint them: brush strokes, boxes, or the whole image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ldm.data.random import StepRandom

if TYPE_CHECKING:
    from ldm.config.data import Size

EVERYTHING = 0.25  # share of masks that cover the whole image, as for Stable Diffusion's inpainting model
STROKES, VERTICES = (1, 5), (4, 13)  # numbers of strokes, and of points in each; the upper ends excluded
WIDTH = (0.05, 0.16)  # of the brush, in sides of the image
TURN, SPREAD = (
    2 * math.pi / 5,
    2 * math.pi / 15,
)  # angle between segments: mean, largest deviation
BOXES, SIDES = (1, 4), (0.12, 0.6)  # number of boxes, and their sides in sides of the image


def free_form_masks(random: StepRandom, step: int, slots: Sequence[int], size: Size) -> Tensor:
    """Generate a mask for each slot, (B, 1, H, W), 1 where to fill, as a function of (seed, step, slot).

    Strokes turn as in algorithm 1 of Yu et al. 2019; a mask has strokes, boxes or both, as in Suvorov et al. 2022.
    """
    seeds = (random.generator("mask", step, slot).initial_seed() for slot in slots)
    masks = np.stack([_mask(np.random.default_rng(seed), size) for seed in seeds])
    return torch.from_numpy(masks)[:, None].float()


def _mask(rng: np.random.Generator, size: Size) -> np.ndarray:
    height, width = size
    if rng.random() < EVERYTHING:
        return np.ones(size, dtype=np.uint8)
    canvas = Image.new("L", (width, height))
    pen, kind = ImageDraw.Draw(canvas), rng.integers(3)
    if kind != 1:
        for _ in range(rng.integers(*STROKES)):
            _stroke(pen, rng, size)
    if kind != 0:
        for _ in range(rng.integers(*BOXES)):
            _box(pen, rng, size)
    return np.array(canvas)


def _stroke(pen: ImageDraw.ImageDraw, rng: np.random.Generator, size: Size) -> None:
    """Paint a polyline that turns left and right in alternation."""
    height, width = size
    count, brush = int(rng.integers(*VERTICES)), max(1, round(rng.uniform(*WIDTH) * min(size)))
    reach = math.hypot(*size) / 8
    angles = rng.uniform(TURN - SPREAD, TURN + SPREAD, count)
    angles[::2] = 2 * math.pi - angles[::2]
    lengths = np.clip(rng.normal(reach, reach / 2, count), 0, 2 * reach)
    points = [(rng.uniform(0, width), rng.uniform(0, height))]
    for angle, length in zip(angles, lengths, strict=True):
        x, y = points[-1][0] + length * math.cos(angle), points[-1][1] + length * math.sin(angle)
        points.append((min(max(x, 0), width), min(max(y, 0), height)))
    pen.line(points, fill=1, width=brush)
    for x, y in points:  # round ends and corners
        pen.ellipse((x - brush / 2, y - brush / 2, x + brush / 2, y + brush / 2), fill=1)


def _box(pen: ImageDraw.ImageDraw, rng: np.random.Generator, size: Size) -> None:
    height, width = size
    across, down = rng.uniform(*SIDES) * width, rng.uniform(*SIDES) * height
    left, top = rng.uniform(0, width - across), rng.uniform(0, height - down)
    pen.rectangle((left, top, left + across, top + down), fill=1)
