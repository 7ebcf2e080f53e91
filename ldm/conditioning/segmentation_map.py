"""Conditioning on a map of classes (Rombach et al. 2022, section 4.3.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.conditioning.base import Meta, Sections, TrainingContext
from ldm.conditioning.conditional_denoiser import ConditioningFn
from ldm.conditioning.spatial import SpatialConditioning, SpatialSection
from ldm.data.fitting import fit_to
from ldm.data.images import paint
from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.checkpoint.pipeline import Pipeline
    from ldm.config.root import Config
    from ldm.data.loader import Batch
    from ldm.generation.request import Request


class SegmentationMapConfig(SpatialSection):
    """A segmentation map, downsampled by 2 in each of `stages` and projected to `channels` by a 1x1 convolution."""

    kind: Literal["segmentation_map"] = "segmentation_map"  # in_channels is the number of classes
    stages: int = Field(0, ge=0)
    names: tuple[str, ...] = ()  # of the classes, in the order of their numbers; (): unknown

    @model_validator(mode="after")
    def _one_name_per_class(self) -> SegmentationMapConfig:
        if self.names and len(self.names) != self.in_channels:
            raise ValueError(
                f"names has {len(self.names)} entries, but in_channels is {self.in_channels}: one per class"
            )
        return self


class SpatialRescaler(nn.Module):
    """Downscale a class map to the size of the latents and project it to few channels."""

    def __init__(self, config: SegmentationMapConfig) -> None:
        super().__init__()
        self.config = config
        self.channel_mapper = nn.Conv2d(config.in_channels, config.channels, 1, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """Map a map (B, C, H, W) to (B, C', h, w), with sides 2 ** stages times smaller."""
        for _ in range(self.config.stages):
            image = F.interpolate(image, scale_factor=0.5, mode="bilinear")
        return self.channel_mapper(image)


class SegmentationMap(SpatialConditioning):
    """A map of classes through a projection that is trained together with the denoiser."""

    name = "segmentation_map"
    section = SegmentationMapConfig
    network = SpatialRescaler
    request_options = frozenset({"layout"})
    data_options = frozenset({"map_classes"})

    @classmethod
    def needed_channels(cls, spatial: Any, autoencoder: Any) -> tuple[int, str]:
        return spatial.channels, ""

    @classmethod
    def check_data(cls, spatial: Any, sections: Sections) -> None:
        factor = sections["autoencoder"].downsampling_factor
        if 2**spatial.stages != factor:
            raise ValueError(
                f"spatial.stages is {spatial.stages}, which makes a map {2**spatial.stages} times smaller, but "
                f"latents are {factor} times smaller than images: set spatial.stages to {factor.bit_length() - 1}"
            )
        data = sections.get("data")
        if data is not None and data.map_classes not in (None, spatial.in_channels):
            raise ValueError(
                f"data.map_classes is {data.map_classes}, but spatial.in_channels is {spatial.in_channels}: "
                "they must be equal"
            )

    @classmethod
    def check_training(cls, config: Config, new: bool) -> None:
        super().check_training(config, new)
        if config.data.map_classes is None:
            raise UserError(
                "spatial.kind segmentation_map needs maps beside the images: set data.map_classes to "
                f"{config.spatial.in_channels}"
            )

    def training_inputs(self, batch: Batch, context: TrainingContext) -> tuple[Tensor, ...]:
        """Return classes of the pixels (B, H, W)."""
        assert batch.maps is not None  # `check_training` requires them
        return (context.to_device(batch.maps),)

    @classmethod
    def conditioning_fn(cls, config: Config) -> ConditioningFn:
        return _rescale

    @classmethod
    def meta(cls, config: Config) -> Meta:
        maps = torch.zeros(1, config.data.size, config.data.size, dtype=torch.uint8)
        return Meta((maps,), {"spatial": SpatialRescaler(config.spatial)})

    def example(self, batch: Batch, row: int, context: TrainingContext) -> tuple[Image.Image, dict[str, Any]]:
        assert batch.maps is not None
        classes = batch.maps[row].numpy()
        return paint(classes), {"layout": Image.fromarray(classes)}

    def resolve(self, request: Request, pipeline: Pipeline) -> Request:
        layout, count = request.layout, self.module.config.in_channels
        names = ", ".join(self.module.config.names)
        classes = f"{count} classes" + (f": {names}" if names else "")
        if layout is None:
            raise UserError(f"this model generates from a class map: give a PNG of {classes} (--layout)")
        if layout.mode not in ("L", "P"):
            raise UserError(f"the layout has mode {layout.mode}: give a PNG of class numbers, grey or with a palette")
        if (highest := int(np.asarray(layout).max())) >= count:
            raise UserError(f"the layout has class {highest}, but this model has {classes}")
        return request

    def channels(self, request: Request, size: tuple[int, int], pipeline: Pipeline) -> Tensor:
        assert request.layout is not None  # `resolve` requires it
        layout = fit_to(request.layout, size, request.size is not None, Image.Resampling.NEAREST)
        classes = torch.from_numpy(np.array(layout)).to(pipeline.device)[None]  # (1, H, W)
        weights = next(self.module.parameters())
        return self.module(one_hot(classes, self.module.config.in_channels).to(weights)).float()


def _rescale(network: Any, maps: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return {"concat": network.spatial(one_hot(maps, network.spatial.config.in_channels))}, {}


def one_hot(maps: Tensor, classes: int) -> Tensor:
    """Map class numbers (B, H, W) to one channel per class, (B, classes, H, W)."""
    return F.one_hot(maps.long(), classes).movedim(-1, 1).float()
