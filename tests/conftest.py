"""Shared fixtures: the command line, and small runs that several tests use."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from nursery import Nursery
from running import SMALL, Command

from ldm.cli.main import main

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported; tests need no network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported; two tests run at a time


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Use an empty cache for this session, so that tests do not depend on the machine."""
    path = tmp_path_factory.mktemp("cache")
    os.environ["LDM_CACHE"] = str(path)
    return path


@pytest.fixture(autouse=True)
def accelerator_state() -> Iterator[None]:
    """Forget the precision of a test's `Accelerator`, since a process can hold only one."""
    yield
    if "accelerate.state" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def nursery(cache: Path) -> Iterator[Nursery]:
    """Fork commands from a process that has imported everything."""
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture(scope="session")
def ldm(nursery: Nursery) -> Command:
    """Run `ldm ...` in one or more separate processes; `check` asserts success."""

    def run(
        *words: object, check: bool = True, processes: int = 1, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess:
        done = nursery.done(words, processes, env)
        assert not check or done.returncode == 0, f"{' '.join(map(str, words))}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def interpreter() -> Command:
    """Run `python -m ldm ...` in a new interpreter, or under torchrun; `check` asserts success."""

    def run(*words: object, check: bool = True, timeout: float = 240, **options: object) -> subprocess.CompletedProcess:
        command = [sys.executable, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done

    def ldm(*words: object, processes: int = 1, **options: object) -> subprocess.CompletedProcess:
        if processes == 1:
            return run("-m", "ldm", *words, **options)
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        launcher = ("-m", "torch.distributed.run", "--nproc_per_node", processes, "-m", "ldm")
        return run(*launcher, *words, env=environment, **options)

    return ldm


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `ldm ...` within the test process, for short commands."""

    def run(*words: object, check: bool = True) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["ldm", *map(str, words)])
        out, errors = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(errors), pytest.raises(SystemExit) as end:
            main()
        done = subprocess.CompletedProcess(sys.argv, end.value.code, out.getvalue(), errors.getvalue())
        assert not check or done.returncode == 0, f"{sys.argv}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def tiny_vae(ldm: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the autoencoder of `tiny` for a few steps."""
    run = tmp_path_factory.mktemp("runs") / "vae"
    ldm("train-vae", "tiny", "--data", "scenes", "--out", run, "--max-steps", 4, *SMALL)
    return run


@pytest.fixture(scope="session")
def tiny_pipeline(ldm: Command, tiny_vae: Path) -> Path:
    """Train the U-Net of `tiny` for a few steps on `tiny_vae`."""
    run = tiny_vae.parent / "unet"
    ldm("train-unet", "tiny", "--data", "scenes", "--vae", tiny_vae, "--out", run, "--max-steps", 4, *SMALL)
    return run
