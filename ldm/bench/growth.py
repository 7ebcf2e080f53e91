"""Growth of sampling time with steps, images and their size, as numbers and as a plot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from ldm import config as configuration
from ldm.bench.machine import timed, types_of
from ldm.bench.networks import prepared, random_network
from ldm.bench.sampling import contexts_of, noise_of, our_sampling, pipeline_of
from ldm.bench.workload import Run
from ldm.chart import Line, Panel, Point, write_chart
from ldm.config.root import Config
from ldm.generation import TextToImage
from ldm.models.unet.unet import UNet

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
PANEL = (430, 380)  # pixels


@dataclass(frozen=True)
class Size:
    """Size of a sampling run."""

    steps: int = 4
    images: int = 1
    side: int = 16  # of the latents


@dataclass(frozen=True)
class Axis:
    """Sizes that vary in one respect, and their place on the axis."""

    across: str
    sizes: tuple[Size, ...]
    place: Callable[[Size], float]


AXES = (
    Axis("steps", tuple(Size(steps=steps) for steps in (5, 10, 15, 20, 25)), lambda size: size.steps),
    Axis("images at a time", tuple(Size(images=count) for count in (1, 2, 3, 4, 6)), lambda size: size.images),
    Axis("positions of the latents", tuple(Size(side=side) for side in (8, 16, 20, 24, 32)), lambda size: size.side**2),
)
Curves = dict[torch.dtype, list[Point]]  # seconds by dtype


def measure_growth(name: str, device: torch.device, runs: int, axes: tuple[Axis, ...] = AXES) -> list[Curves]:
    """Measure the median seconds of sampling for the sizes of each axis, with the U-Net of a configuration.

    Measurements of different sizes and dtypes alternate, so that a temporary slowdown affects all of them.
    """
    config = configuration.load(name)
    unet = random_network(lambda: UNet(config.denoiser)).to(device)
    return [_curves(config, unet, device, runs, axis) for axis in axes]


def _curves(config: Config, unet: UNet, device: torch.device, runs: int, axis: Axis) -> Curves:
    pipes = {dtype: pipeline_of(config, prepared(unet, dtype)) for dtype in types_of(device)}
    works = {(dtype, size): _work(pipe, config, size, device) for dtype, pipe in pipes.items() for size in axis.sizes}
    seconds: dict[tuple[torch.dtype, Size], list[float]] = {key: [] for key in works}
    for _ in range(1 + runs):  # the first one warms up
        for key, work in works.items():
            seconds[key].append(timed(work, device))
    return {dtype: [(axis.place(size), median(seconds[dtype, size][1:])) for size in axis.sizes] for dtype in pipes}


def _work(pipe: TextToImage, config: Config, size: Size, device: torch.device) -> Run:
    contexts = contexts_of(config, size.images + 1).to(device)
    return our_sampling(pipe, size.steps, contexts, noise_of(config, size.images, size.side).to(device))


def draw_growth(curves: list[Curves], out: Path, axes: tuple[Axis, ...] = AXES) -> None:
    """Write the curves as a PNG, one panel per axis, with axes from zero."""
    panels = [
        Panel("", axis.across, "seconds", [Line(NAMES[dtype], points) for dtype, points in found.items()], True)
        for axis, found in zip(axes, curves, strict=True)
    ]
    write_chart(out, panels, PANEL)
