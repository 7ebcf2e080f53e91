"""Save the steps of a run and resume from them: exactly, or with a line that says why not."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import DistributedType
from accelerate.utils import broadcast_object_list
from torch import Tensor

import ldm
from ldm.config.root import Config
from ldm.config.section import dump
from ldm.config.training import TrainingConfig
from ldm.data.loader import BatchShare, TrainingData
from ldm.data.preview import validation_of
from ldm.data.sources import Source
from ldm.data.validation import Validation
from ldm.errors import UserError
from ldm.storage.renames import current_config, current_facts
from ldm.training.diagnostics.divergence import Divergence
from ldm.training.optim.schedules import Clock
from ldm.training.runs.run import Run, SaveError
from ldm.training.stages.stage import Stage

VALIDATION_BATCH = 16
BANDS = 4  # quarters of the timesteps, with a validation loss each
# Options of a stage that do not change what is trained.
HARMLESS = {"log_every", "save_every", "sample_every", "keep", "keep_best", "validation_images", "sample_prompts"}
HARMLESS |= {"sample_classes", "sample_images", "sample_guidance_scale", "sample_steps"}
HARMLESS |= {"gradient_checkpointing", "ema_device"}
SHARDING = {DistributedType.FSDP: "FSDP2", DistributedType.DEEPSPEED: "DeepSpeed"}
# What follows from a change of circumstances or options, for the line about a resumed run.
ROUNDING = "rounding differs"
CONSEQUENCES = {
    "processes": ROUNDING,
    "sharding": ROUNDING,
    "device": ROUNDING,
    "images": "the order of the data differs",
    "held_out": "the order of the data differs; data.validation=0 holds nothing out",
    "torch": "rounding may differ",
    "ldm": "arithmetic may differ",
    "batch_size": "this epoch repeats or skips some images",
    "gradient_accumulation": ROUNDING,
    "max_steps": "the learning rate decays differently",
    "seed": "all random numbers differ from here on",
}


class Saver:
    """Saves the steps of a run and resumes the newest one; all processes must call the same methods."""

    def __init__(self, stage: Stage, run: Run, config: Config, source: Source, budget: float | None = None) -> None:
        """`budget` limits the seconds of training over all commands of the run; see `Clock`."""
        self.stage, self.run, self.config, self.source = stage, run, config, source
        self.divergence = Divergence(stage.accelerator, stage.name, stage.config, run)
        steps = run.steps()
        spent = float(run.facts(steps[-1]).get("seconds", 0.0)) if steps else 0.0
        self.clock = Clock(stage.config, stage.accelerator, budget, spent)
        self._held_out: dict[str, int] = {"held_out": len(source.held_out(config.data))}

    def resume(self) -> tuple[int, str | None]:
        """Load the newest state into the stage.

        Returns:
            Its step, 0 in an empty run, and a line about what makes the run inexact, if anything.

        Raises:
            UserError: if the state belongs to another configuration.
        """
        saved = self.run.load_state()
        if saved is None:
            return 0, None
        then, now = _options(saved.folder), _flat(yaml.safe_load(dump(self.config)))
        self._check_optimizer(saved.folder, then, now)
        try:
            self.stage.load_state(saved.state)
        except (RuntimeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"{saved.folder} was written with another configuration and cannot be resumed: {reason}"
            ) from error
        if self.stage.accelerator.is_main_process:
            self.run.unpublish()
        changes = [*self._changed_circumstances(current_facts(saved.facts)), *self._changed_options(then, now)]
        return saved.step, f"resumed, but not exactly: {'; '.join(changes)}" if changes else None

    def _check_optimizer(self, folder: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
        option = f"training.{self.stage.name}.optimizer"
        if (old := then.get(option, "adamw")) != (new := now[option]):
            raise UserError(
                f"{folder} was trained with optimizer {old}, whose state {new} cannot load: set {option}={old}, "
                "or start another run from its weights with --init"
            )

    def save(self, step: int, found: dict[str, float]) -> None:
        """Write `step-N` with the results of `validate`, and delete the steps that are not kept.

        Raises:
            SaveError: if that fails, in all processes.
            DivergedError: if a tensor or result is not finite; nothing is written.
        """
        stage = self.stage
        failed: str | None = None
        diverged: str | None = None
        with stage.averaged():
            state = stage.state()
            if stage.accelerator.is_main_process:
                diverged = self.divergence.check_state(step, state, found)
            if stage.accelerator.is_main_process and diverged is None:
                spent = {} if self.clock.budget is None else {"seconds": round(self.clock.seconds, 1)}
                try:
                    self.run.save(step, stage.save, state, self.config, {**self._circumstances(), **spent, **found})
                    self.run.prune(stage.config.keep, stage.config.keep_best)
                except SaveError as error:
                    failed = str(error)
        [failed, diverged] = broadcast_object_list([failed, diverged])
        if diverged is not None:
            self.divergence.stop(diverged)
        if failed is not None:
            raise SaveError(failed)

    def validate(self) -> dict[str, float]:
        """Return `validation_loss` and its bands, the same in all processes, or nothing if validation is off."""
        found: list[dict[str, float]] = [{}]
        with self.stage.averaged():
            if self.stage.accelerator.is_main_process and self.stage.config.validation_images:
                found = [self._validation_losses()]
        broadcast_object_list(found)
        return found[0]

    @cached_property
    def _validation(self) -> Validation | None:
        return validation_of(self.source, self.config.data, self.stage.config.validation_images)

    def _validation_losses(self) -> dict[str, float]:
        """Return the loss of the averaged weights on held-out images with the fixed noise and levels of step 0.

        It is comparable between the steps of a run and does not depend on the batch size and the processes.
        """
        if (validation := self._validation) is None:
            return {}
        images, stage = self.stage.config.validation_images, self.stage
        share = BatchShare(images, accumulation=images // VALIDATION_BATCH)
        data = TrainingData(
            validation.source,
            self.config.data,
            share,
            self.config.training.seed,
            stage.needs_images or not validation.cached,
            unreadable=stage.unreadable if validation.cached else None,
            classes=self.config.uses_labels,
            only=validation.indices,
        )
        found = [stage.validate(data[0, micro], validation.cached) for micro in range(share.accumulation)]
        losses = torch.cat([each.losses for each in found])
        times = [each.times for each in found if each.times is not None]
        bands = _by_band(losses, torch.cat(times)) if times else {}
        return {"validation_loss": losses.mean().item(), **bands}

    def _circumstances(self) -> dict[str, Any]:
        """Return what the numbers of a step depend on apart from the configuration."""
        accelerator = self.stage.accelerator
        return {
            "processes": accelerator.num_processes,
            "sharding": SHARDING.get(accelerator.distributed_type, "none"),
            "device": accelerator.device.type,
            "images": len(self.source),
            **self._held_out,
            "torch": str(torch.__version__),
            "ldm": ldm.__version__,
        }

    def _changed_circumstances(self, then: dict[str, Any]) -> Iterator[str]:
        then = {"held_out": 0} | then  # runs from before there was `data.validation`
        for name, value in self._circumstances().items():
            if name in then and then[name] != value:
                yield f"{name} {value}, was {then[name]} ({CONSEQUENCES[name]})"

    def _changed_options(self, then: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
        others = [name for name in TrainingConfig.model_fields if name not in (self.stage.name, "seed")]
        for path, value in now.items():
            last = path.rsplit(".", 1)[-1]
            harmless = (
                last in HARMLESS or path == "data.workers" or any(f"training.{other}" in path for other in others)
            )
            if last == "max_steps" and self.stage.config.decay == "constant":
                harmless = True
            if path in then and then[path] != value and not harmless:
                consequence = f" ({CONSEQUENCES[last]})" if last in CONSEQUENCES else ""
                yield f"{path} {value}, was {then[path]}{consequence}"


def _by_band(losses: Tensor, times: Tensor) -> dict[str, float]:
    """Return the mean loss of each quarter of the timesteps that has any, `validation_loss_t0` for the least noise."""
    bands = (times.float() * BANDS).long().clamp(0, BANDS - 1)
    found = {band: losses[bands == band] for band in range(BANDS)}
    return {f"validation_loss_t{band * 1000 // BANDS}": each.mean().item() for band, each in found.items() if len(each)}


def _options(folder: Path) -> dict[str, Any]:
    """Return the options of a saved step by their paths, under the names of today."""
    path = folder / "config.yaml"
    return _flat(current_config(yaml.safe_load(path.read_text()))) if path.is_file() else {}


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
