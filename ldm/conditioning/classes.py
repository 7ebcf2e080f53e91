"""Class tables."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from ldm.config.section import Section, Width


class ClassesConfig(Section):
    """A table with one token a class, which the U-Net attends to (Rombach et al. 2022, section 4.4)."""

    num_classes: int = Field(1000, ge=1)  # rows; with training.unet.condition_dropout the last stands for no class
    hidden_size: Width = Field(512, ge=1)  # width of the context


class ClassEmbedder(nn.Module):
    """A table with one token a class, which the U-Net attends to."""

    def __init__(self, config: ClassesConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.num_classes, config.hidden_size)

    def forward(self, labels: Tensor) -> Tensor:
        """Labels (B,) to the context (B, 1, D)."""
        return self.embedding(labels)[:, None]
