"""Processes of several launchers, as their variables describe them."""

from __future__ import annotations

import os
import warnings

import pytest
import torch

from ldm.errors import UserError, UserNote
from ldm.processes import VARIABLES, ProcessShare

OPEN_MPI = {f"OMPI_COMM_WORLD_{name}": value for name, value in {"SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}.items()}
MPICH = {"PMI_SIZE": "4", "PMI_RANK": "3", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}
SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}
TORCHRUN = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "there"}
OTHERS = ("ACCELERATE_USE_CPU", "ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, *OTHERS, *(other for names in VARIABLES.values() for other in names)):
        monkeypatch.setenv(name, "")  # so that it is restored if code sets it
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def launched(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> ProcessShare:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return ProcessShare.of_environment()


@pytest.mark.parametrize("variables", [OPEN_MPI, MPICH, SRUN | {"MASTER_ADDR": "there"}, TORCHRUN])
def test_processes_of_all_launchers_form_one_group_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    assert launched(monkeypatch, variables) == ProcessShare(3, 4)
    assert [os.environ[name] for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK")] == ["4", "3", "1"]
    assert os.environ["ACCELERATE_USE_CPU"] == "true"
    assert os.environ["MASTER_ADDR"] == variables.get("MASTER_ADDR", "127.0.0.1")


def test_gpus_are_used_if_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert launched(monkeypatch, OPEN_MPI) == ProcessShare(3, 4)
    assert "ACCELERATE_USE_CPU" not in os.environ


@pytest.mark.parametrize(
    "variables", [{}, {"WORLD_SIZE": "1", "RANK": "0"}, {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}]
)
def test_one_process_stays_alone(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert launched(monkeypatch, variables) == ProcessShare()
    assert "ACCELERATE_USE_CPU" not in os.environ


def test_several_nodes_need_the_address_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="MASTER_ADDR is not set: export it with the host name"):
        launched(monkeypatch, SRUN)


def test_a_note_says_that_accelerate_started_one_process_instead_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    set_by_accelerate = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "True"}
    with pytest.warns(UserNote, match="asked for several processes but started one.*torchrun --nproc_per_node"):
        assert launched(monkeypatch, set_by_accelerate) == ProcessShare()
