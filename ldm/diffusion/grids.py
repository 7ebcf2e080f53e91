"""Grids: the levels of a table schedule that sampling visits, by spacing or by a list of timesteps.

All samplers use the same grids. diffusers' schedulers differ, so their grids have other names here:

| here | in diffusers 0.42 |
|---|---|
| leading | all but DPM-Solver and UniPC, which for n steps use the grid of n + 1 without its last |
| linspace | DDIM, DDPM, PNDM; DPM-Solver and UniPC as above |
| trailing | all |
| fractional | "linspace" of Euler, Euler-ancestral and Heun |
| karras, exponential, beta | `use_karras_sigmas`, `use_exponential_sigmas`, `use_beta_sigmas` with "linspace" |

`use_lu_lambdas` is exponential.

DPM-Solver and UniPC have the levels of karras and exponential too, but pass the network a t that is rounded (karras) or
truncated (exponential, and karras of DPM-Solver with the cosine schedule). Here each step ends where the next begins;
diffusers' DDIM and PNDM always stride by T // steps (differs for linspace, and for trailing if steps does not divide
T). Initial noise is standard normal; Euler and Heun with "linspace" and "trailing" scale it by sigma.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ldm.diffusion.level import Grid, Level, clean_level
from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.diffusion.schedule import TableSchedule

RHO = 7.0  # Karras et al. 2022, table 1
PURE_NOISE = math.sqrt(2**24 - 1)  # replaces sigma / alpha = infinity between levels, as in diffusers (alpha 2^-12)


def make_grid(schedule: TableSchedule, steps: int, spacing: str | None = None) -> Grid:
    """Return the levels of a spacing (None: the schedule's own) and the final level, in float64.

    Raises:
        UserError: for an unknown spacing, or more steps than training timesteps.
    """
    total = schedule.config.num_train_timesteps
    if not 1 <= steps <= total:
        raise UserError(f"{steps} sampling steps: the model was trained with {total}, so give 1 to {total}")
    check_spacing(spacing)
    levels = SPACINGS[spacing or schedule.config.spacing](schedule, steps)
    return _grid(schedule, levels)


def grid_at(schedule: TableSchedule, timesteps: Sequence[float]) -> Grid:
    """Return the levels at decreasing timesteps, possibly between those of training, and the final level.

    Raises:
        UserError: unless the timesteps decrease and lie in the schedule.
    """
    check_timesteps(timesteps)
    last = schedule.config.num_train_timesteps - 1
    if timesteps[0] > last:
        raise UserError(f"timestep {timesteps[0]:g} is out of range: the model was trained with 0 to {last}")
    whole = all(float(t).is_integer() for t in timesteps)
    t = torch.tensor(timesteps, dtype=torch.int64 if whole else torch.float64)
    return _grid(schedule, _at(schedule, t))


def _grid(schedule: TableSchedule, levels: list[Level]) -> Grid:
    def by_ratio(ratio: Tensor) -> Level:
        return _at_ratios(schedule, ratio[None])[0]

    return Grid((*levels, _final_level(schedule)), by_ratio=by_ratio)


def check_spacing(spacing: str | None) -> None:
    """Raise UserError for an unknown spacing."""
    if spacing is not None and spacing not in SPACINGS:
        raise UserError(f"unknown spacing {spacing!r}: choose one of {', '.join(SPACINGS)}")


def check_timesteps(timesteps: Sequence[float]) -> None:
    """Raise UserError unless timesteps decrease to 0 or more."""
    rising = any(not late < early for early, late in itertools.pairwise(timesteps))
    if not timesteps or rising or not 0 <= timesteps[-1] <= timesteps[0] < math.inf:
        shown = ", ".join(f"{t:g}" for t in timesteps)
        raise UserError(f"timesteps {shown}: give at least one, in decreasing order, none below 0")


def _final_level(schedule: TableSchedule) -> Level:
    """Return the image itself (`set_alpha_to_one`), or the level of timestep 0."""
    return clean_level() if schedule.config.set_alpha_to_one else schedule.level(torch.tensor(0), torch.float64)


# --- the levels of each spacing, noisiest first -----------------------------------------------------------------------


def _leading(schedule: TableSchedule, steps: int) -> list[Level]:
    """Lin et al. 2024, table 2, from the left."""
    total, offset = schedule.config.num_train_timesteps, schedule.config.steps_offset
    t = torch.arange(steps).flip(0) * (total // steps) + offset
    if t[0] >= total:
        raise UserError(
            f"{steps} sampling steps with steps_offset {offset} start at timestep {int(t[0])} "
            f"of 0 to {total - 1}: give fewer steps"
        )
    return _at(schedule, t)


def _trailing(schedule: TableSchedule, steps: int) -> list[Level]:
    """Lin et al. 2024, table 2, from the right."""
    total = schedule.config.num_train_timesteps
    stride = total - (total - total / steps)  # in the rounding of numpy.arange(total, 0, -stride), for equal ties
    return _at(schedule, (total - stride * torch.arange(steps, dtype=torch.float64)).round().long() - 1)


def _linspace(schedule: TableSchedule, steps: int) -> list[Level]:
    """Lin et al. 2024, table 2, both ends."""
    return _at(schedule, _even(schedule, steps).flip(0).round().long())


def _fractional(schedule: TableSchedule, steps: int) -> list[Level]:
    """Return both ends and fractional timesteps evenly between them; a single step starts from the noisiest level."""
    last = schedule.config.num_train_timesteps - 1
    return _at(schedule, last - _even(schedule, steps))


def _karras(schedule: TableSchedule, steps: int) -> list[Level]:
    """Even in (sigma / alpha)^(1 / rho) over the whole schedule (Karras et al. 2022, eq. 5)."""
    lowest, highest = _ratios(schedule)[[0, -1]] ** (1 / RHO)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return _at_ratios(schedule, (highest + ramp * (lowest - highest)) ** RHO)


def _exponential(schedule: TableSchedule, steps: int) -> list[Level]:
    """Even in log sigma / alpha over the whole schedule."""
    lowest, highest = _ratios(schedule)[[0, -1]].log()
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return _at_ratios(schedule, (highest + ramp * (lowest - highest)).exp())


def _beta(schedule: TableSchedule, steps: int) -> list[Level]:
    """At the quantiles of a Beta(0.6, 0.6) distribution in sigma / alpha (Lee et al. 2024)."""
    lowest, highest = _ratios(schedule)[[0, -1]]
    places = _beta_quantiles(1 - torch.linspace(0, 1, steps, dtype=torch.float64))
    return _at_ratios(schedule, lowest + places * (highest - lowest))


def _beta_quantiles(shares: Tensor, shape: float = 0.6) -> Tensor:
    """Return the quantiles of Beta(shape, shape), by bisection of its distribution's series (DLMF 8.17.7)."""
    lower = torch.minimum(shares, 1 - shares)  # the distribution is symmetric
    n = torch.arange(60, dtype=torch.float64)  # powers of at most 1 / 2
    factors = torch.cat([torch.ones(1, dtype=torch.float64), ((n - shape + 1) / (n + 1)).cumprod(0)[:-1]]) / (n + shape)
    scale = math.gamma(2 * shape) / math.gamma(shape) ** 2
    low, high = torch.zeros_like(lower), torch.full_like(lower, 0.5)
    for _ in range(60):
        middle = (low + high) / 2
        below = scale * middle**shape * (middle[:, None] ** n @ factors) < lower
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where(shares <= 0.5, low, 1 - low)


SPACINGS: dict[str, Callable[[TableSchedule, int], list[Level]]] = {
    "leading": _leading,
    "trailing": _trailing,
    "linspace": _linspace,
    "fractional": _fractional,
    "karras": _karras,
    "exponential": _exponential,
    "beta": _beta,
}

# --- levels by t and by sigma / alpha ---------------------------------------------------------------------------------


def _even(schedule: TableSchedule, steps: int) -> Tensor:
    return torch.linspace(0, schedule.config.num_train_timesteps - 1, steps, dtype=torch.float64)


def _at(schedule: TableSchedule, t: Tensor) -> list[Level]:
    """Return the levels at timesteps (steps,); sigma / alpha is interpolated linearly at fractional ones."""
    if not t.is_floating_point():
        return [schedule.level(timestep, torch.float64) for timestep in t]
    ratios = _ratios(schedule)
    below = t.long().clamp(max=len(ratios) - 2)
    return _levels(schedule, t, torch.lerp(ratios[below], ratios[below + 1], t - below))


def _at_ratios(schedule: TableSchedule, ratios: Tensor) -> list[Level]:
    """Return the levels of given sigma / alpha (steps,); t is interpolated linearly in its logarithm."""
    table = _ratios(schedule).log()
    above = torch.searchsorted(table, ratios.log()).clamp(1, len(table) - 1)
    share = (ratios.log() - table[above - 1]) / (table[above] - table[above - 1])
    return _levels(schedule, above - 1 + share.clamp(0, 1), ratios)


def _levels(schedule: TableSchedule, t: Tensor, ratios: Tensor) -> list[Level]:
    """Return levels with alpha^2 + sigma^2 = 1 and float32 t.

    Whole timesteps have the levels of the table, so that zero signal stays zero.
    """
    angles, levels = ratios.atan(), []
    for timestep, angle in zip(t, angles, strict=True):
        whole = timestep.round()
        if (timestep - whole).abs() < 1e-9:
            levels.append(replace(schedule.level(whole.long(), torch.float64), t=whole.float()))
        else:
            levels.append(Level(angle.cos(), angle.sin(), timestep.float()))
    return levels


def _ratios(schedule: TableSchedule) -> Tensor:
    """Return sigma / alpha of every training timestep (T,), the sigma of k-diffusion, with infinity replaced."""
    ratios = schedule.sigma / schedule.alpha
    return ratios.nan_to_num(posinf=max(PURE_NOISE, 2 * ratios[-2].item()))  # above all others, even in a fine table
