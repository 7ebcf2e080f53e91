"""What a U-Net is told besides text: a class, or an image beside the latents (Rombach et al. 2022, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.config.conditions import ClassesConfig, SpatialConfig


class ClassEmbedder(nn.Module):
    """A table with one token a class, which the U-Net attends to."""

    def __init__(self, config: ClassesConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.num_classes, config.hidden_size)

    def forward(self, labels: Tensor) -> Tensor:
        """Labels (B,) to the context (B, 1, D)."""
        return self.embedding(labels)[:, None]


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
