"""Images that are concatenated to the latents."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.config.section import Section


class SpatialConfig(Section):
    """An image beside the latents, joined to the U-Net's input channels (Rombach et al. 2022, section 4.3).

    `segmentation_map`: a class map, halved `stages` times and projected to `channels` by a 1x1 convolution;
    `inpainting`: the mask of what is to be filled, and the latents of the image without it; `low_resolution`: a
    small image with as many pixels as there are latents.
    """

    kind: Literal["segmentation_map", "inpainting", "low_resolution"]
    in_channels: int = Field(3, ge=1)  # classes of the map, or channels of the mask or the image
    channels: int = Field(3, ge=1)  # that join the latents
    stages: int = Field(0, ge=0)
    names: tuple[str, ...] = ()  # of the map's classes, in the order of their numbers; (): they have none

    @model_validator(mode="after")
    def _names_are_of_classes(self) -> SpatialConfig:
        if self.names and self.kind != "segmentation_map":
            raise ValueError(f"names are those of a map's classes: they mean nothing for kind {self.kind}")
        if self.names and len(self.names) != self.in_channels:
            raise ValueError(f"there are {len(self.names)} names and {self.in_channels} in_channels: one a class")
        return self


class SpatialRescaler(nn.Module):
    """A map of classes made as small as the latents, half by half, and brought to few channels."""

    def __init__(self, config: SpatialConfig) -> None:
        super().__init__()
        self.config = config
        self.channel_mapper = nn.Conv2d(config.in_channels, config.channels, 1, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """A map (B, C, H, W) to (B, C', h, w), with sides 2 ** stages times smaller."""
        for _ in range(self.config.stages):
            image = F.interpolate(image, scale_factor=0.5, mode="bilinear")
        return self.channel_mapper(image)


class SpatialIdentity(nn.Module):
    """An image that joins the latents as it is: it has as many pixels as they, and no weights."""

    def __init__(self, config: SpatialConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, image: Tensor) -> Tensor:
        """The image (B, C, h, w)."""
        return image


Spatial = SpatialRescaler | SpatialIdentity


def make_spatial(config: SpatialConfig) -> Spatial:
    """What brings a picture of the configured kind beside the latents."""
    return SpatialRescaler(config) if config.kind == "segmentation_map" else SpatialIdentity(config)


def one_hot(maps: Tensor, classes: int) -> Tensor:
    """A channel a class, (B, classes, H, W), of maps of class numbers (B, H, W)."""
    return F.one_hot(maps.long(), classes).movedim(-1, 1).float()


def hidden(images: Tensor, masks: Tensor) -> Tensor:
    """Images (B, 3, H, W) with grey, which is zero, where masks (B, 1, H, W) are 1, and themselves where 0."""
    return images * (1 - masks)


def inpainting_channels(masks: Tensor, latents: Tensor) -> Tensor:
    """Masks (B, 1, H, W), 1 where to fill, and the latents (B, C, h, w) of the hidden images: (B, 1 + C, h, w).

    In the order and with the nearest pixels of Stable Diffusion's inpainting models.
    """
    return torch.cat([F.interpolate(masks, size=latents.shape[-2:]).to(latents), latents], dim=1)
