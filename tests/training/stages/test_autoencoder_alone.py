"""Configurations of an autoencoder without a denoiser."""

from pathlib import Path

import pytest

from ldm import config
from ldm.errors import UserError
from ldm.training.plan import plan
from ldm.training.runs.run import Run
from ldm.training.stages.stage import StartingPoint
from ldm.training.stages.unet import UNetStage


def test_the_plan_counts_the_parameters_of_a_published_autoencoder() -> None:
    lines = plan("autoencoder", config.load("published/vq-f8"), "scenes").splitlines()
    assert any(line.startswith("parameters of the autoencoder") and line.endswith("67,717,295") for line in lines)


def test_training_a_u_net_raises_an_error_if_the_configuration_has_none(tmp_path: Path) -> None:
    alone = config.load("published/kl-f8")
    with pytest.raises(UserError, match="has no denoiser: add a section unet"):
        plan("unet", alone, "scenes")
    with pytest.raises(UserError, match="has no denoiser: add a section unet"):
        UNetStage.check(alone, Run(tmp_path / "run", resume=False), StartingPoint())
