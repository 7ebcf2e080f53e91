"""The folders of schedulers that pipelines come with: our schedule visits the levels of each `set_timesteps`."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from oracle import ratios

from ldm.checkpoint.diffusers.pipeline import load_scheduler
from ldm.checkpoint.diffusers.scheduler_fields import scheduler_from_fields
from ldm.diffusion.level import Grid
from ldm.diffusion.schedule import make_schedule
from ldm.diffusion.scheduler_classes import SCHEDULERS
from ldm.errors import UserError

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
# Files as they were published; what does not belong to a class is there all the same.
SD_1 = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.7.0.dev0",
    **BETAS,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
SD_2 = SD_1 | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
SDXL = SD_1 | {
    "_class_name": "EulerDiscreteScheduler",
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
LDM_TEXT = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.0.4",
    **BETAS,
    "clip_sample": False,
    "tensor_format": "pt",
    "timestep_values": None,
    "trained_betas": None,
}
LDM_FACES = LDM_TEXT | {"beta_start": 0.0015, "beta_end": 0.0195}
PUBLISHED = {"sd 1": SD_1, "sd 2": SD_2, "sdxl": SDXL, "ldm text": LDM_TEXT, "ldm faces": LDM_FACES}

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must:DeprecationWarning")  # numpy's, of their own code

MULTISTEP = [name for name in SCHEDULERS if "Multistep" in name or "Singlestep" in name]
DISTILLED = ["LCMScheduler", "TCDScheduler"]
TABLES = ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler", *DISTILLED]


def scheduler_class(name: str) -> Any:
    """Return a class of diffusers; the SDE's imports torchsde, of which only its noise needs anything."""
    sys.modules.setdefault("torchsde", types.ModuleType("torchsde"))
    if name == "DPMSolverSDEScheduler":
        return importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde").DPMSolverSDEScheduler
    return getattr(diffusers, name)


def saved(scheduler: Any, folder: Path) -> Any:
    """Our schedule out of its folder, whose table in float64 takes the place of its own, of float32."""
    scheduler.save_config(folder)
    schedule = make_schedule(load_scheduler(folder).schedule)
    table = schedule.alpha**2
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), table, rtol=1e-4, atol=0)
    if getattr(scheduler, "final_alpha_cumprod", 1.0) != 1.0:
        scheduler.final_alpha_cumprod = table[0]
    scheduler.alphas_cumprod = table
    return schedule


def visited(name: str, theirs: Any, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The timesteps and sigma / alpha at them, the end included, once each."""
    theirs.set_timesteps(steps)
    t = torch.as_tensor(theirs.timesteps).double()
    if name in TABLES:
        t = t.unique().flip(0)  # PNDM asks the second one twice
        last = getattr(theirs, "final_alpha_cumprod", torch.ones(()))
        last = theirs.alphas_cumprod[0] if name == "TCDScheduler" else last  # its step knows no other end
        alphas = torch.cat([theirs.alphas_cumprod[t.long()], torch.as_tensor(last).view(1)]).double()
        return t, (1 / alphas - 1).sqrt()
    sigmas = theirs.sigmas.double()
    if "KDPM2" in name:
        return t[::2], torch.cat([sigmas[:1], sigmas[1:-1:2]])
    if "Heun" in name or "SDE" in name:
        return t[::2], torch.cat([sigmas[:-1:2], sigmas[-1:]])
    return t, sigmas


def assert_visits(name: str, grid: Grid, t: torch.Tensor, levels: torch.Tensor) -> None:
    torch.testing.assert_close(grid.t.double(), t, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(ratios(grid), levels, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize(
    "origin", ["sdxl", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sd 1", "defaults"))]
)
def test_the_levels_match_its_diffusers_class(name: str, origin: str, tmp_path: Path) -> None:
    kind = scheduler_class(name)
    own = {"skip_prk_steps": True} if name == "PNDMScheduler" else {"clip_sample": False} if name in TABLES else {}
    theirs = kind(**own) if origin == "defaults" else kind.from_config(PUBLISHED[origin])
    schedule = saved(theirs, tmp_path)
    for steps in (5, 25):
        t, levels = visited(name, theirs, steps)
        grid = schedule.grid(steps)
        if name in MULTISTEP and schedule.config.spacing in ("leading", "linspace"):
            assert schedule.grid(steps + 1).t[:-1].tolist() == t.tolist()  # as `ldm.diffusion.grids` says
            grid = schedule.grid_at(t.tolist())
        assert_visits(name, grid, t, levels)


@pytest.mark.parametrize("name", [name for name, kind in SCHEDULERS.items() if name not in TABLES])
@pytest.mark.parametrize(
    "flag",
    ["use_karras_sigmas", "use_beta_sigmas", pytest.param("use_exponential_sigmas", marks=pytest.mark.slow)],
)
def test_levels_evenly_spaced_in_noise_match_its_diffusers_class(name: str, flag: str, tmp_path: Path) -> None:
    if name == "EulerAncestralDiscreteScheduler":
        with pytest.raises(UserError, match=f"{flag} is True"):
            scheduler_from_fields(SD_1 | {"_class_name": name, "clip_sample": False, flag: True}, tmp_path)
        return
    theirs = scheduler_class(name).from_config(SD_1, **{flag: True})
    schedule = saved(theirs, tmp_path)
    for steps in (5, 25):
        t, levels = visited(name, theirs, steps)
        grid = schedule.grid(steps)
        torch.testing.assert_close(ratios(grid), levels, rtol=1e-6, atol=0)
        assert ((grid.t - t).abs() <= 1).all()  # some round or cut it to an integer


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"])
def test_levels_of_lu_lambdas_match_its_diffusers_class(name: str, tmp_path: Path) -> None:
    if name == "DPMSolverSinglestepScheduler":
        assert not hasattr(diffusers.DPMSolverSinglestepScheduler().config, "use_lu_lambdas")
        return
    theirs = diffusers.DPMSolverMultistepScheduler.from_config(SD_1, use_lu_lambdas=True)
    schedule = saved(theirs, tmp_path)
    t, levels = visited(name, theirs, 10)
    grid = schedule.grid(10)
    torch.testing.assert_close(ratios(grid), levels, rtol=1e-6, atol=0)
    assert ((grid.t - t).abs() <= 1).all()


@pytest.mark.parametrize("published", PUBLISHED)
def test_a_published_file_is_read_as_its_class_reads_it(published: str, tmp_path: Path) -> None:
    fields = PUBLISHED[published]
    name = fields["_class_name"]
    theirs = getattr(diffusers, name).from_config(fields)
    config, schedule = scheduler_from_fields(fields, tmp_path), saved(theirs, tmp_path)
    assert config.schedule == schedule.config
    assert config.prediction == {"v_prediction": "v"}.get(theirs.config.prediction_type, "eps")
    for steps in (20, 50):
        assert_visits(name, schedule.grid(steps), *visited(name, theirs, steps))


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DDPMScheduler"])
def test_a_learned_variance_is_seen(name: str, tmp_path: Path) -> None:
    theirs = getattr(diffusers, name).from_config(SD_1, variance_type="learned_range")
    theirs.save_config(tmp_path)
    assert load_scheduler(tmp_path).learned_variance


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("DPMSolverMultistepScheduler", "lambda_min_clipped", -5.1),
        ("DPMSolverMultistepScheduler", "use_flow_sigmas", True),
        ("DPMSolverMultistepScheduler", "variance_type", "learned"),
        ("DPMSolverMultistepScheduler", "final_sigmas_type", "one"),
        ("DPMSolverMultistepScheduler", "timestep_spacing", "sideways"),
        ("DPMSolverMultistepScheduler", "a_field_of_tomorrow", 1),
        ("UniPCMultistepScheduler", "use_dynamic_shifting", True),
        ("UniPCMultistepScheduler", "shift_terminal", 0.1),
        ("UniPCMultistepScheduler", "sigma_max", 9.0),
        ("DEISMultistepScheduler", "use_beta_sigmas", "yes"),
        ("DDIMScheduler", "use_beta_sigmas", True),
        ("LMSDiscreteScheduler", "variance_type", "learned_range"),
        ("LCMScheduler", "timestep_scaling", 5.0),
        ("LCMScheduler", "clip_sample", "yes"),
        ("DPMSolverMultistepScheduler", "thresholding", "yes"),
        ("KDPM2DiscreteScheduler", "trained_betas", [0.1, 0.2]),
        ("DDIMScheduler", "tensor_format", "np"),
        ("VQDiffusionScheduler", "_class_name", "VQDiffusionScheduler"),
    ],
)
def test_a_field_that_changes_the_levels_and_cannot_be_followed_raises_an_error(
    name: str, field: str, value: Any, tmp_path: Path
) -> None:
    said = {"_class_name": str(value), "timestep_spacing": "spacing"}.get(field, field)
    with pytest.raises(UserError, match=said):
        scheduler_from_fields(SD_1 | {"_class_name": name, field: value}, tmp_path)
