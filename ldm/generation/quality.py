"""Quality presets: values for options that a request leaves open, from exact to fast."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ldm.errors import UserError

if TYPE_CHECKING:
    import torch

    from ldm.generation.request import Request

STRENGTH = 0.8  # default share of the steps that are run from an image


@dataclass(frozen=True)
class Preset:
    """Values for options of a request; docs/presets.md has the cost of each and how it was measured."""

    num_inference_steps: int = 30
    sampler: str = "ddim"
    half: bool = False  # U-Net and decoder compute in bfloat16 where the device is fast in it


PRESETS = {
    "exact": Preset(),
    "fast": Preset(num_inference_steps=15, sampler="unipc", half=True),
    "draft": Preset(num_inference_steps=10, sampler="unipc", half=True),
}


def check_quality(quality: str) -> None:
    """Raise UserError for an unknown preset."""
    if quality not in PRESETS:
        raise UserError(f"no quality {quality!r}: choose one of {', '.join(PRESETS)}")


def complete(request: Request, bfloat16: torch.dtype | None) -> Request:
    """Fill in the options that the quality preset, an image or the sampler decide.

    `bfloat16` is that dtype where the device is fast in it. Given options exclude what contradicts them: an eta
    all samplers but ddim, CLIP guidance, which needs gradients, bfloat16.
    """
    from ldm.diffusion.samplers import sampler_eta

    preset = PRESETS[request.quality]
    sampler = request.sampler or (preset.sampler if request.eta is None else "ddim")
    strength = (
        request.strength if request.image is None else request.strength or (STRENGTH if request.mask is None else 1.0)
    )
    return replace(
        request,
        num_inference_steps=len(request.timesteps or ()) or request.num_inference_steps or preset.num_inference_steps,
        sampler=sampler,
        eta=sampler_eta(sampler) if request.eta is None else request.eta,
        strength=strength,
        dtype=request.dtype or (bfloat16 if preset.half and request.clip is None else None),
    )
