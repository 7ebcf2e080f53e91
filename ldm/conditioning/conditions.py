"""Inputs of a denoiser that conditionings produce, for a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ldm.models.denoiser import Added


@dataclass(frozen=True)
class Conditions:
    """Inputs of a denoiser other than latents and level, with one row per image; None: no such input."""

    context: Tensor | None = None  # (B, L, D), for cross-attention
    classes: Tensor | None = None  # (B,), for the denoiser's class embedding
    pooled: Tensor | None = None  # (B, P), pooled text for SDXL's added embedding
    sizes: Tensor | None = None  # (B, 5 or 6), sizes and crop for SDXL's added embedding; see `Added`
    concat: Tensor | None = None  # (B, C, h, w), concatenated to the latents
    guidance: Tensor | None = None  # (B,), the guidance scale, for denoisers that embed it

    @property
    def added(self) -> Added | None:
        """Inputs of SDXL's added embedding."""
        return None if self.pooled is None or self.sizes is None else Added(self.pooled, self.sizes)

    @property
    def in_time(self) -> Conditions:
        """The inputs that are added to the time embedding."""
        return replace(self, context=None, concat=None)

    @property
    def time_inputs(self) -> tuple[Tensor | None, Added | None, Tensor | None]:
        """Arguments of `DenoiserNetwork.embed_time` after the times."""
        return self.classes, self.added, self.guidance

    @property
    def count(self) -> int:
        """Number of rows, 0 without any input."""
        return max((len(tensor) for tensor in vars(self).values() if tensor is not None), default=0)

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditions:
        """Apply a function to every tensor."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return Conditions(**{name: tensor if tensor is None else change(tensor) for name, tensor in found.items()})

    def rows(self, at: slice | list[int]) -> Conditions:
        """Select rows."""
        return self.map(lambda tensor: tensor[at])

    def expand(self, count: int) -> Conditions:
        """Repeat a single row `count` times, without copying."""
        return self.map(lambda tensor: tensor.expand(count, *tensor.shape[1:]))

    def merge(self, other: Conditions) -> Conditions:
        """Combine the inputs of two conditionings."""
        return replace(self, **{name: tensor for name, tensor in vars(other).items() if tensor is not None})

    def lerp(self, other: Conditions, weight: float) -> Conditions:
        """Interpolate linearly between two conditions of the same kind."""
        pairs = {name: (mine, getattr(other, name)) for name, mine in vars(self).items() if mine is not None}
        return Conditions(**{name: torch.lerp(mine, theirs, weight) for name, (mine, theirs) in pairs.items()})

    @staticmethod
    def cat(conditions: Sequence[Conditions]) -> Conditions:
        """Concatenate the rows of several batches."""
        columns = {each.name: [getattr(c, each.name) for c in conditions] for each in fields(Conditions)}
        return Conditions(**{name: None if found[0] is None else torch.cat(found) for name, found in columns.items()})
