"""A configuration of an autoencoder alone: its trainer takes it, that of U-Nets says in one line what is missing."""

from pathlib import Path

import pytest

from ldm import config
from ldm.errors import UserError
from ldm.training.plan import plan
from ldm.training.runs.run import Run
from ldm.training.stages.stage import StartingPoint
from ldm.training.stages.unet import UNetStage


def test_a_published_autoencoder_can_be_planned() -> None:
    lines = plan("autoencoder", config.load("published/vq-f8"), "scenes").splitlines()
    assert any(line.startswith("parameters of the autoencoder") and line.endswith("67,717,295") for line in lines)


def test_a_u_net_cannot_be_trained_where_there_is_none(tmp_path: Path) -> None:
    alone = config.load("published/kl-f8")
    with pytest.raises(UserError, match="describes an autoencoder alone"):
        plan("unet", alone, "scenes")
    with pytest.raises(UserError, match="describes an autoencoder alone"):
        UNetStage.check(alone, Run(tmp_path / "run", resume=False), StartingPoint())
