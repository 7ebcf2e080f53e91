"""What is measured: one piece of work, as ours does it and as others do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Run = Callable[[], Tensor | None]  # does the work once; returns what is compared, None where nothing can be

SIDES = ("ours", "theirs", "tuned", "theirs_bf16", "tiled")  # in the order in which they take turns


def nothing() -> None:
    """Close what needs no closing."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One piece of work and those who do it, on the same weights and inputs; it holds all that they need."""

    ours: Run
    theirs: Run | None = None  # diffusers at its defaults, in float32
    tuned: Run | None = None  # diffusers with what its users can set
    theirs_bf16: Run | None = None  # diffusers in bfloat16 throughout
    tiled: Run | None = None  # ours in bounded memory, which is measured and not its time
    plain: Run | None = None  # ours unprepared and in float32: what the others are compared with if not with `theirs`
    flops: int | None = None  # floating-point operations of one run, a multiplication and an addition being two
    images: int | None = None  # of one run, where their rate is of interest
    dtype: torch.dtype = torch.float32  # in which ours computes: whose peak it can come near
    elsewhere: bool = False  # in processes of its own, whose memory is not this one's
    close: Callable[[], None] = nothing  # called when all is measured

    @property
    def sides(self) -> dict[str, Run]:
        """Those who do the work, by name."""
        runs = {name: getattr(self, name) for name in SIDES}
        return {name: run for name, run in runs.items() if run is not None}


Maker = Callable[[bool], Workload]  # with diffusers beside ours, or without
