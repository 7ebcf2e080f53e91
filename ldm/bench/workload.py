"""Workloads: one piece of work, done by ours and by others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Run = Callable[[], Tensor | None]  # does the work once; returns what is compared, if anything

SIDES = ("ours", "theirs", "tuned", "theirs_bf16", "tiled")  # in the order of their turns


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One measured task and its implementations (ldm, diffusers), on the same weights and inputs."""

    ours: Run
    theirs: Run | None = None  # diffusers at its defaults, in float32
    tuned: Run | None = None  # diffusers with options that its users can set
    theirs_bf16: Run | None = None  # diffusers in bfloat16 throughout
    tiled: Run | None = None  # ours in bounded memory; not timed
    plain: Run | None = None  # ours unprepared in float32: the reference without `theirs`
    flops: int | None = None  # floating-point operations of one run; multiply and add are two
    images: int | None = None  # of one run, to report their rate
    dtype: torch.dtype = torch.float32  # of ours, which selects the peak to compare with
    in_subprocess: bool = False  # its memory is not that of this process
    close: Callable[[], None] = lambda: None  # frees resources after the measurement

    @property
    def sides(self) -> dict[str, Run]:
        """Runs by name of the side."""
        runs = {name: getattr(self, name) for name in SIDES}
        return {name: run for name, run in runs.items() if run is not None}


Maker = Callable[[bool], Workload]  # of whether to measure diffusers as well
