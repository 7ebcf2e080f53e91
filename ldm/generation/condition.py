"""What a U-Net is told of the images of a batch, besides their latents and level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ldm.models.denoiser import Added


@dataclass(frozen=True)
class Condition:
    """Tensors with a row an image, or None of a kind that the U-Net does not know."""

    context: Tensor | None = None  # (B, L, D), of text or classes, to attend to
    classes: Tensor | None = None  # (B,), for a U-Net with a table of its own
    added: Added | None = None  # pooled text (B, P) and sizes (B, 6)
    spatial: Tensor | None = None  # (B, C, h, w), channels that join the latents

    @property
    def count(self) -> int:
        """Number of images that are told apart, 0 where nothing is told."""
        told = (self.context, self.classes, None if self.added is None else self.added.sizes)
        return max(0 if tensor is None else len(tensor) for tensor in told)

    def rows(self, at: slice | list[int]) -> Condition:
        """That of some of the images."""
        return mapped(lambda tensor: tensor[at], self)

    def expand(self, count: int) -> Condition:
        """That of so many images out of that of one."""
        return mapped(lambda tensor: tensor.expand(count, *tensor.shape[1:]), self)

    def beside(self, spatial: Tensor | None, count: int = 1) -> Condition:
        """With the same channels (1, C, h, w) beside the latents of each of `count` images."""
        return self if spatial is None else replace(self, spatial=spatial.expand(count, -1, -1, -1))

    def silent(self) -> Condition:
        """Zeros in the place of what text says; sizes stay."""
        context = None if self.context is None else torch.zeros_like(self.context)
        added = None if self.added is None else self.added._replace(text=torch.zeros_like(self.added.text))
        return replace(self, context=context, added=added)

    @property
    def in_time(self) -> Condition:
        """What of it joins the time embedding."""
        return Condition(classes=self.classes, added=self.added)


def mapped(change: Callable[..., Tensor], *conditions: Condition) -> Condition:
    """The condition whose tensors are what `change` makes of those of the conditions, kind by kind."""
    kinds = zip(*((c.context, c.classes, c.spatial, *(c.added or (None, None))) for c in conditions), strict=True)
    context, classes, spatial, text, sizes = (None if tensors[0] is None else change(*tensors) for tensors in kinds)
    return Condition(context, classes, None if text is None or sizes is None else Added(text, sizes), spatial)


def joined(*conditions: Condition) -> Condition:
    """That of the images of several batches, behind each other."""
    return mapped(lambda *tensors: torch.cat(tensors), *conditions)
