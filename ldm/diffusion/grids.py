"""Grids: the levels of a schedule that sampling visits, by their spacing or by a list of timesteps.

All samplers walk the same grids. Those of diffusers do not, so that theirs are here under different names:

| here | in diffusers 0.42 |
|---|---|
| leading | all but DPM-Solver and UniPC, which for n steps take the grid of n + 1 without its last |
| linspace | DDIM, DDPM, PNDM; DPM-Solver and UniPC as above |
| trailing | all |
| fractional | "linspace" of Euler, Euler-ancestral and Heun |
| karras, exponential | `use_karras_sigmas`, `use_exponential_sigmas` of Euler and Heun with "linspace" |

DPM-Solver and UniPC have the levels of karras and exponential too, but tell the network a t rounded to an integer
(karras) or cut to one (exponential, and karras of DPM-Solver with the cosine schedule). Each step ends where the next
begins, also where diffusers' DDIM and PNDM stride by T // steps past it (linspace; trailing if steps does not divide
T). Noise to start from is standard normal, where Euler and Heun with "linspace" and "trailing" scale it by sigma.
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
    from ldm.diffusion.schedule import Schedule

RHO = 7.0  # Karras et al. 2022, table 1
PURE_NOISE = math.sqrt(2**24 - 1)  # stands for sigma / alpha = infinity between levels, as in diffusers (alpha 2^-12)


def make_grid(schedule: Schedule, steps: int, spacing: str | None = None) -> Grid:
    """The levels of a spacing (None: the schedule's own) in so many steps, then the end of the schedule, in float64.

    Raises UserError for an unknown spacing, and when the schedule does not have so many steps.
    """
    total = schedule.config.num_train_timesteps
    if not 1 <= steps <= total:
        raise UserError(f"{steps} sampling steps: the model was trained with {total}, so give 1 to {total}")
    check_spacing(spacing)
    levels = _spacings[spacing or schedule.config.spacing](schedule, steps)
    return Grid((*levels, _final_level(schedule)))


def grid_at(schedule: Schedule, timesteps: Sequence[float]) -> Grid:
    """The levels at falling timesteps, which may lie between those of training, then the end of the schedule.

    Raises UserError unless they fall and lie in the schedule.
    """
    check_timesteps(timesteps)
    last = schedule.config.num_train_timesteps - 1
    if timesteps[0] > last:
        raise UserError(f"timestep {timesteps[0]:g}: the model was trained with 0 to {last}")
    whole = all(float(t).is_integer() for t in timesteps)
    t = torch.tensor(timesteps, dtype=torch.int64 if whole else torch.float64)
    return Grid((*_at(schedule, t), _final_level(schedule)))


def check_spacing(spacing: str | None) -> None:
    """Raise UserError for a spacing that does not exist."""
    if spacing is not None and spacing not in _spacings:
        raise UserError(f"no spacing {spacing!r}: there are {', '.join(_spacings)}")


def check_timesteps(timesteps: Sequence[float]) -> None:
    """Raise UserError for a list of timesteps that no schedule could walk."""
    rising = any(not late < early for early, late in itertools.pairwise(timesteps))
    if not timesteps or rising or not 0 <= timesteps[-1] <= timesteps[0] < math.inf:
        shown = ", ".join(f"{t:g}" for t in timesteps)
        raise UserError(f"timesteps {shown}: give at least one, each smaller than the one before, down to 0 or more")


def _final_level(schedule: Schedule) -> Level:
    """No noise at all (`set_alpha_to_one`), or the level of timestep 0."""
    return clean_level() if schedule.config.set_alpha_to_one else schedule.level(torch.tensor(0), torch.float64)


# --- levels by name, (steps) of them, noisiest first ------------------------------------------------------------------


def _leading(schedule: Schedule, steps: int) -> list[Level]:
    """Lin et al. 2024, table 2, from the left."""
    total, offset = schedule.config.num_train_timesteps, schedule.config.steps_offset
    t = torch.arange(steps).flip(0) * (total // steps) + offset
    if t[0] >= total:
        raise UserError(
            f"{steps} sampling steps with steps_offset {offset} start at timestep {int(t[0])} "
            f"of 0 to {total - 1}: give fewer steps"
        )
    return _at(schedule, t)


def _trailing(schedule: Schedule, steps: int) -> list[Level]:
    """Lin et al. 2024, table 2, from the right."""
    total = schedule.config.num_train_timesteps
    stride = total - (total - total / steps)  # in the rounding of numpy.arange(total, 0, -stride), for equal ties
    return _at(schedule, (total - stride * torch.arange(steps, dtype=torch.float64)).round().long() - 1)


def _linspace(schedule: Schedule, steps: int) -> list[Level]:
    """Lin et al. 2024, table 2, both ends."""
    return _at(schedule, _even(schedule, steps).flip(0).round().long())


def _fractional(schedule: Schedule, steps: int) -> list[Level]:
    """Both ends, and what lies evenly between them; a single step starts from the noisiest level."""
    last = schedule.config.num_train_timesteps - 1
    return _at(schedule, last - _even(schedule, steps))


def _karras(schedule: Schedule, steps: int) -> list[Level]:
    """Even in (sigma / alpha)^(1 / rho) over the whole schedule (Karras et al. 2022, eq. 5)."""
    lowest, highest = _ratios(schedule)[[0, -1]] ** (1 / RHO)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return _at_ratios(schedule, (highest + ramp * (lowest - highest)) ** RHO)


def _exponential(schedule: Schedule, steps: int) -> list[Level]:
    """Even in log sigma / alpha over the whole schedule."""
    lowest, highest = _ratios(schedule)[[0, -1]].log()
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return _at_ratios(schedule, (highest + ramp * (lowest - highest)).exp())


_spacings: dict[str, Callable[[Schedule, int], list[Level]]] = {
    "leading": _leading,
    "trailing": _trailing,
    "linspace": _linspace,
    "fractional": _fractional,
    "karras": _karras,
    "exponential": _exponential,
}

# --- levels by t and by sigma / alpha ---------------------------------------------------------------------------------


def _even(schedule: Schedule, steps: int) -> Tensor:
    return torch.linspace(0, schedule.config.num_train_timesteps - 1, steps, dtype=torch.float64)


def _at(schedule: Schedule, t: Tensor) -> list[Level]:
    """Levels at timesteps (steps,); at a fractional one, sigma / alpha is linear between its neighbours'."""
    if not t.is_floating_point():
        return [schedule.level(timestep, torch.float64) for timestep in t]
    ratios = _ratios(schedule)
    below = t.long().clamp(max=len(ratios) - 2)
    return _levels(schedule, t, torch.lerp(ratios[below], ratios[below + 1], t - below))


def _at_ratios(schedule: Schedule, ratios: Tensor) -> list[Level]:
    """Levels of given sigma / alpha (steps,); between timesteps, t is linear in its logarithm."""
    table = _ratios(schedule).log()
    above = torch.searchsorted(table, ratios.log()).clamp(1, len(table) - 1)
    share = (ratios.log() - table[above - 1]) / (table[above] - table[above - 1])
    return _levels(schedule, above - 1 + share.clamp(0, 1), ratios)


def _levels(schedule: Schedule, t: Tensor, ratios: Tensor) -> list[Level]:
    """Levels with alpha^2 + sigma^2 = 1, or the table's own at whole timesteps, so that zero signal stays zero.

    Their t is float32 as a network takes it.
    """
    angles, levels = ratios.atan(), []
    for timestep, angle in zip(t, angles, strict=True):
        whole = timestep.round()
        if (timestep - whole).abs() < 1e-9:
            levels.append(replace(schedule.level(whole.long(), torch.float64), t=whole.float()))
        else:
            levels.append(Level(angle.cos(), angle.sin(), timestep.float()))
    return levels


def _ratios(schedule: Schedule) -> Tensor:
    """sigma / alpha of every training timestep (T,), which is the sigma of k-diffusion, all of them finite."""
    ratios = schedule.sigma / schedule.alpha
    return ratios.nan_to_num(posinf=max(PURE_NOISE, 2 * ratios[-2].item()))  # above all others, however fine the table
