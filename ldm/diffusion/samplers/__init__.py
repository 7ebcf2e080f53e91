"""Samplers: generators that visit a grid of levels with a denoiser and yield each step.

| name | network calls in n steps | noise |
|---|---|---|
| ddim, euler | n | ddim: `eta` times that of ddpm |
| ddpm, euler-ancestral, ddpm-large | n | each step, except one that ends without noise |
| heun | 2 n - 1 (2 n - 2 from zero signal) | none |
| plms | n + 1 (n from zero signal, or if n = 1) | none |
| dpmpp-2m, dpmpp-2s, unipc, deis, lms | n | none |
| kdpm2 | 2 n, or 2 n - 1 if the last step ends without noise | none |
| kdpm2-ancestral, dpmpp-sde | as kdpm2 | each step, except one that ends without noise |
| dpmpp-2m-sde | n | each step, except one that ends without noise |
| lcm | n | each step except the last |

euler equals ddim, and euler-ancestral equals ddpm, in other variables; they differ only if given different grids.
`inversion.invert` runs in the other direction.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ldm.diffusion.samplers.step import Sampler
from ldm.errors import UserError
from ldm.registry import SAMPLERS


def make_sampler(name: str, eta: float | None = None) -> Sampler:
    """Return a registered sampler; `eta`, from 0 to 1, is an option of ddim.

    Raises:
        UserError: for an unknown name, or an `eta` that the sampler does not support.
    """
    sampler: Any = SAMPLERS[name]
    own = sampler_eta(name)
    if eta is None or eta == own:
        return sampler
    if own is None:
        raise UserError(f"sampler {name} has no eta: that is an option of sampler ddim")
    if not sampler.any_eta:
        raise UserError(f"sampler {name} has eta {own:g}, not {eta:g}: for other values use sampler ddim")
    if not 0 <= eta <= 1:
        raise UserError(f"eta {eta:g} is not between 0 (no fresh noise) and 1 (as much as DDPM)")
    return replace(sampler, eta=eta)


def sampler_eta(name: str) -> float | None:
    """Return the default eta of a sampler, None if it has no such option."""
    eta: float | None = getattr(SAMPLERS[name], "eta", None)
    return eta
