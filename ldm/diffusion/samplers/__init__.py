"""Samplers: generators that walk a grid of levels with a denoiser and yield each step.

| name | network calls in n steps | noise |
|---|---|---|
| ddim, euler | n | ddim: `eta` times that of ddpm |
| ddpm, euler-ancestral, ddpm-large | n | each step but one that ends without any |
| heun | 2 n - 1 (2 n - 2 from zero signal) | none |
| plms | n + 1 (n from zero signal, or if n = 1) | none |
| dpmpp-2m, unipc | n | none |
| dpmpp-2m-sde | n | each step but one that ends without any |
| lcm | n | each step but the last |

euler is ddim and euler-ancestral is ddpm, written in other variables: they stand under both names because people know
them by both, and differ only if given different grids. `invert` goes the other way and is no sampler.
"""

from __future__ import annotations

from ldm.diffusion.samplers.consistency import Consistency
from ldm.diffusion.samplers.dpm_solver import DPMSolver2M
from ldm.diffusion.samplers.first_order import FirstOrder
from ldm.diffusion.samplers.heun import Heun
from ldm.diffusion.samplers.inversion import invert
from ldm.diffusion.samplers.plms import PLMS
from ldm.diffusion.samplers.step import Noise, Sampler, Step
from ldm.diffusion.samplers.unipc import UniPC
from ldm.errors import UserError

__all__ = [
    "PLMS",
    "SAMPLERS",
    "Consistency",
    "DPMSolver2M",
    "FirstOrder",
    "Heun",
    "Noise",
    "Sampler",
    "Step",
    "UniPC",
    "invert",
    "make_sampler",
    "sampler_eta",
]

SAMPLERS: dict[str, Sampler] = {  # they keep nothing between two walks
    "ddim": FirstOrder(),
    "ddpm": FirstOrder(1.0),
    "ddpm-large": FirstOrder(1.0, "large"),
    "euler": FirstOrder(),
    "euler-ancestral": FirstOrder(1.0),
    "heun": Heun(),
    "plms": PLMS(),
    "dpmpp-2m": DPMSolver2M(),
    "dpmpp-2m-sde": DPMSolver2M(stochastic=True),
    "unipc": UniPC(),
    "lcm": Consistency(),
}


def make_sampler(name: str, eta: float | None = None) -> Sampler:
    """The sampler of a name, ddim with the `eta` given; raises UserError for other names and other etas."""
    if name not in SAMPLERS:
        raise UserError(f"no sampler {name!r}: there are {', '.join(SAMPLERS)}")
    own = sampler_eta(name)
    if eta is None or eta == own:
        return SAMPLERS[name]
    if own is None:
        raise UserError(f"sampler {name} has no eta: that is an option of sampler ddim")
    if name != "ddim":
        raise UserError(f"sampler {name} has eta {own:g}, not {eta:g}: for other values use sampler ddim")
    if not 0 <= eta <= 1:
        raise UserError(f"eta {eta:g} is not between 0 (no fresh noise) and 1 (that of DDPM)")
    return FirstOrder(eta)


def sampler_eta(name: str) -> float | None:
    """The eta that a sampler has if none is asked for, or None for one without."""
    sampler = SAMPLERS[name]
    return sampler.eta if isinstance(sampler, FirstOrder) else None
