"""A run directory: complete `step-N` folders, the log, and the newest model at the top.

Folders that are being written or deleted have a hidden name, `.step-N.tmp`, so that a process may die at any moment.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm import config as configuration
from ldm.checkpoint.find import step_folders
from ldm.config.root import Config
from ldm.errors import UserError
from ldm.processes import ProcessShare
from ldm.storage.renames import current_weights
from ldm.storage.store import flush, load_json, load_tree, save_json, save_tree
from ldm.training.runs.lock import lock_folder


class SaveError(UserError):
    """A step could not be written; older steps are complete and training may continue."""


@dataclass(frozen=True)
class Saved:
    """A `step-N` folder that was read."""

    step: int
    state: dict[str, Any]
    facts: dict[str, Any]
    folder: Path


class Run:
    """The folder of one training run."""

    def __init__(self, path: Path, resume: bool) -> None:
        """Create or open the folder.

        Raises:
            UserError: if it contains a run and `resume` is False, if it cannot be written to, or if another training
                uses it.
        """
        self.path = path
        if path.exists() and not path.is_dir():
            raise UserError(f"--out {path} is a file, not a folder")
        is_first = ProcessShare.of_environment().is_first
        try:
            path.mkdir(parents=True, exist_ok=True)
            probe = path / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(f"cannot write to {path}: {error.strerror}") from error
        self._lock = lock_folder(path) if is_first else None
        self._recover(is_first)
        if not resume and (self.steps() or (path / "log.jsonl").exists()):
            raise UserError(f"{path} contains a run: continue it with --resume, or choose another --out")

    def steps(self) -> list[Path]:
        """Return the complete `step-N` folders, oldest first."""
        return step_folders(self.path)

    def facts(self, folder: Path) -> dict[str, Any]:
        """Return the facts that `save` wrote about a step; {} for steps of older versions."""
        path = folder / "state" / "facts.json"
        return load_json(path) if path.is_file() else {}

    def best(self) -> Path | None:
        """Return the step with the lowest validation loss, the first of equal ones; None without validation."""
        losses = {folder: self.facts(folder).get("validation_loss") for folder in self.steps()}
        measured = {folder: float(loss) for folder, loss in losses.items() if loss is not None}
        return min(measured, key=measured.__getitem__) if measured else None

    def load_state(self) -> Saved | None:
        """Read the newest step; None in an empty run."""
        steps = self.steps()
        if not steps:
            return None
        tree = load_tree(steps[-1] / "state")
        return Saved(int(tree["step"]), current_weights(tree["stage"]), self.facts(steps[-1]), steps[-1])

    def save(
        self,
        step: int,
        write_model: Callable[[Path], None],
        state: dict[str, Any],
        config: Config,
        facts: dict[str, Any] | None = None,
    ) -> Path:
        """Write `step-N` under a temporary name, flush it to the disk and rename it.

        Raises:
            SaveError: if that fails.
        """
        final = self.path / f"step-{step:06d}"
        work = self._hidden(final)
        try:
            shutil.rmtree(work, ignore_errors=True)
            self._check_space(state)
            work.mkdir(parents=True)
            write_model(work)
            (work / "config.yaml").write_text(configuration.dump(config))
            save_json(work / "state" / "facts.json", facts or {})
            save_tree(work / "state", {"step": step, "stage": state})
            _flush_all(work)
            self._put(work, final)
        except OSError as error:
            shutil.rmtree(work, ignore_errors=True)
            raise SaveError(f"{final} could not be written: {error.strerror}; {self._remaining()}") from error
        return final

    def prune(self, keep: int, keep_best: bool = True) -> None:
        """Delete all steps but the `keep` newest ones and, with `keep_best`, the best one."""
        best = self.best() if keep_best else None
        for folder in self.steps()[:-keep]:
            if folder != best:
                hidden = self._hidden(folder)
                shutil.rmtree(hidden, ignore_errors=True)
                folder.rename(hidden)
                shutil.rmtree(hidden, ignore_errors=True)

    def unpublish(self) -> None:
        """Mark the model at the top as outdated, since training continues."""
        (self.path / "model_index.json").unlink(missing_ok=True)

    def publish(self) -> None:
        """Copy the newest step's model to the top, `model_index.json` last.

        Raises:
            SaveError: if that fails.
        """
        newest = self.steps()[-1]
        try:
            self.unpublish()
            for source in sorted(newest.iterdir()):
                if source.name not in ("state", "model_index.json"):
                    _replace(source, self.path / source.name)
            if (newest / "model_index.json").is_file():
                _replace(newest / "model_index.json", self.path / "model_index.json")
        except (OSError, shutil.Error) as error:
            reason = getattr(error, "strerror", None) or "see the disk"
            raise SaveError(f"{newest} could not be copied to {self.path}: {reason}; use {newest} itself") from error

    def _put(self, work: Path, final: Path) -> None:
        """Rename a complete folder; if a step is saved again, one of the two exists at every moment."""
        old = final.with_name(f".{final.name}.old")
        if final.exists():
            final.rename(old)
        work.rename(final)
        flush(self.path)
        shutil.rmtree(old, ignore_errors=True)

    def _recover(self, is_first: bool) -> None:
        """Tidy up after a process that was killed: a step between two names gets its own back."""
        for old in self.path.glob(".step-*.old"):
            final = old.with_name(old.name.removeprefix(".").removesuffix(".old"))
            if not final.exists():
                old.rename(final)
        if is_first:
            for left in (*self.path.glob(".step-*.tmp"), *self.path.glob(".step-*.old")):
                shutil.rmtree(left, ignore_errors=True)

    def _check_space(self, state: dict[str, Any]) -> None:
        """Raise OSError if the disk has less space than the last step took or the first one needs."""
        steps = self.steps()
        if steps:
            needed = sum(path.stat().st_size for path in steps[-1].rglob("*") if path.is_file())
        else:
            needed = _size(state) * 5 // 4  # the average is written twice, in the state and as the model
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise OSError(0, f"the disk has {free / 2**20:,.0f} MiB free, but {needed / 2**20:,.0f} MiB are needed")

    def _remaining(self) -> str:
        steps = self.steps()
        return f"{steps[-1].name} and older steps are untouched" if steps else "no step has been saved yet"

    @staticmethod
    def _hidden(folder: Path) -> Path:
        return folder.with_name(f".{folder.name}.tmp")


def _replace(source: Path, target: Path) -> None:
    """Copy a file or a folder; meanwhile `target` is the old one or does not exist."""
    work = target.with_name(f".{target.name}.tmp")
    if source.is_dir():
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(source, work)
        shutil.rmtree(target, ignore_errors=True)
        work.rename(target)
    else:
        shutil.copyfile(source, work)
        work.replace(target)


def _size(tree: Any) -> int:
    """Return the bytes of all tensors in nested dicts, lists and tuples."""
    if isinstance(tree, Tensor):
        return tree.numel() * tree.element_size()
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return sum(_size(child) for child in children)


def _flush_all(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        flush(path)


def complete_config(config: Config, run: Path) -> Config:
    """Return the configuration with the options that follow from sources of its conditionings, such as `text.source`.

    A run that continues has them without the source.

    Raises:
        UserError: if a source is missing, or differs from what the configuration says.
    """
    steps = step_folders(run)
    saved = configuration.load_saved(steps[-1] / "config.yaml") if steps else None
    for kind in config.conditionings:
        config = kind.complete(config, saved)
    return config
