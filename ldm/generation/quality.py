"""Presets of a request: what is chosen for options that it leaves open, from exact to fast."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ldm.devices import computes_bfloat16
from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.generation.request import Request


@dataclass(frozen=True)
class Preset:
    """Values for options of a request; docs/presets.md has what each costs and how it was found."""

    num_inference_steps: int = 30
    sampler: str = "ddim"
    guidance_interval: tuple[float, float] | None = None
    deepcache: int = 1
    half: bool = False  # U-Net and decoder in bfloat16, where the device computes that fast


PRESETS = {
    "exact": Preset(),
    "fast": Preset(num_inference_steps=15, sampler="unipc", half=True),
    "draft": Preset(num_inference_steps=10, sampler="unipc", half=True),
}


def preset(quality: str) -> Preset:
    """The preset of a name; UserError for other names."""
    if quality not in PRESETS:
        raise UserError(f"no quality {quality!r}: it is one of {', '.join(PRESETS)}")
    return PRESETS[quality]


def resolve_quality(request: Request, device: torch.device) -> Request:
    """The request with what its quality says of the options that it leaves open; its guidance is resolved.

    An option that is given excludes what would contradict it: timesteps the number of steps, an eta samplers other than
    ddim, CLIP, which needs a gradient, deepcache and bfloat16. An interval is chosen where there is guidance.
    """
    chosen = preset(request.quality)
    leads, half = request.guidance_scale != 1, chosen.half and request.clip is None
    return replace(
        request,
        num_inference_steps=request.steps,
        sampler=request.sampler or (chosen.sampler if request.eta is None else "ddim"),
        guidance_interval=request.guidance_interval or (chosen.guidance_interval if leads else None),
        deepcache=request.deepcache or (chosen.deepcache if request.clip is None else 1),
        dtype=request.dtype or (torch.bfloat16 if half and computes_bfloat16(device) else None),
    )
