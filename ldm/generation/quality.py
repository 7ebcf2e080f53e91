"""Quality presets: values for options that a request leaves open, from exact to fast."""

from __future__ import annotations

from dataclasses import dataclass

from ldm.errors import UserError


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
