"""What a U-Net is told besides text: a class, or a picture beside the latents (Rombach et al. 2022, section 4)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ldm.config import ClassesConfig, SpatialConfig


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

    def forward(self, picture: Tensor) -> Tensor:
        """A map (B, C, H, W) to (B, C', h, w), with sides 2 ** stages times smaller."""
        for _ in range(self.config.stages):
            picture = F.interpolate(picture, scale_factor=0.5, mode="bilinear")
        return self.channel_mapper(picture)
