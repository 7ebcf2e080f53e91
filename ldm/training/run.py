"""A run directory: `step-N` folders that are whole or not there, the log, and the newest model at the top."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldm import config as configuration
from ldm.checkpoint.diffusers import step_folders
from ldm.checkpoint.store import flush, load_tree, save_tree
from ldm.config import Config
from ldm.errors import UserError


class Run:
    """The folder of one training run.

    Raises UserError when the folder holds a run and `resume` was not asked for, or cannot be written to.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self.path = path
        if path.exists() and not path.is_dir():
            raise UserError(f"--out {path} is a file, not a folder")
        if not resume and (self.steps() or (path / "log.jsonl").exists()):
            raise UserError(f"{path} holds a run: continue it with --resume, or choose another --out")
        try:
            path.mkdir(parents=True, exist_ok=True)
            probe = path / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(f"cannot write to {path}: {error.strerror}") from error

    def steps(self) -> list[Path]:
        """The whole `step-N` folders, oldest first."""
        return step_folders(self.path)

    def load_state(self) -> tuple[int, dict[str, Any], Path] | None:
        """Step, state and folder of the newest save; None in an empty run."""
        steps = self.steps()
        if not steps:
            return None
        tree = load_tree(steps[-1] / "state")
        return int(tree["step"]), tree["stage"], steps[-1]

    def save(self, step: int, write_model: Callable[[Path], None], state: dict[str, Any], config: Config) -> Path:
        """Write `step-N` under a temporary name, flush it to the disk and rename it."""
        final = self.path / f"step-{step:06d}"
        work = self.path / f".{final.name}.tmp"
        try:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            write_model(work)
            (work / "config.yaml").write_text(configuration.dump(config))
            save_tree(work / "state", {"step": step, "stage": state})
            _flush_all(work)
            if final.exists():  # the same step, saved again after a resume
                shutil.rmtree(final)
            work.rename(final)
            flush(self.path)
        except OSError as error:
            shutil.rmtree(work, ignore_errors=True)
            raise UserError(f"{final} could not be written: {error.strerror}; older steps are untouched") from error
        return final

    def prune(self, keep: int) -> None:
        """Delete all but the `keep` newest steps."""
        for folder in self.steps()[:-keep]:
            shutil.rmtree(folder)

    def unpublish(self) -> None:
        """Training goes on: what lies at the top is no longer the newest."""
        (self.path / "model_index.json").unlink(missing_ok=True)

    def publish(self) -> None:
        """Copy the newest step's model to the top; `model_index.json` comes last."""
        newest = self.steps()[-1]
        self.unpublish()
        for source in sorted(newest.iterdir()):
            if source.name in ("state", "model_index.json"):
                continue
            target, work = self.path / source.name, self.path / f".{source.name}.tmp"
            if source.is_dir():
                shutil.rmtree(work, ignore_errors=True)
                shutil.copytree(source, work)
                shutil.rmtree(target, ignore_errors=True)
                work.rename(target)
            else:
                shutil.copyfile(source, work)
                work.replace(target)
        if (newest / "model_index.json").is_file():
            shutil.copyfile(newest / "model_index.json", self.path / ".model_index.tmp")
            (self.path / ".model_index.tmp").replace(self.path / "model_index.json")


def _flush_all(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        flush(path)


def with_text_source(config: Config, run: Path) -> Config:
    """The configuration with the sizes of its text encoder's source, which a run that goes on knows without it.

    Raises UserError for a source that is not there, and for one of other sizes than the configuration's.
    """
    from ldm.checkpoint.text_sources import adopt, source_config

    text, steps = config.text, step_folders(run)
    if text is None or text.source is None:
        return config
    saved = configuration.load(str(steps[-1] / "config.yaml")).text if steps else None
    if saved is not None and saved.source == text.source:
        if saved.frozen != text.frozen:
            raise UserError(f"text.frozen is {text.frozen}, in the run {run} it is {saved.frozen}: it cannot change")
        whole = adopt(text, saved)
    else:
        whole = adopt(text, source_config(text))
    return configuration.parse(config.model_dump() | {"text": whole.model_dump()}, Config, f"text.source {text.source}")
