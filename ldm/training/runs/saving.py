"""When and what a run saves, and how it continues: exactly, or with a line that says why not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import DistributedType
from accelerate.utils import broadcast_object_list

import ldm
from ldm.config.root import Config
from ldm.config.section import dump
from ldm.config.training import TrainingConfig
from ldm.data.loader import Batch, BatchShare, TrainingData
from ldm.data.sources import IndexedSource, Source
from ldm.errors import UserError
from ldm.training.diagnostics.divergence import Divergence
from ldm.training.runs.clock import Clock
from ldm.training.runs.run import Run, SaveError
from ldm.training.stages.stage import Stage

VALIDATION_BATCH = 16
# Options of a stage that change nothing in what is trained.
HARMLESS = {"log_every", "save_every", "sample_every", "keep", "keep_best", "validation_images", "sample_prompts"}
HARMLESS |= {
    "sample_classes",
    "sample_images",
    "sample_guidance_scale",
    "sample_steps",
    "gradient_checkpointing",
    "ema_device",
}
DIVISIONS = {DistributedType.FSDP: "FSDP2", DistributedType.DEEPSPEED: "DeepSpeed"}


class Saver:
    """Writes the steps of a run and takes up its newest one; every process must call the same methods."""

    def __init__(self, stage: Stage, run: Run, config: Config, source: Source) -> None:
        self.stage, self.run, self.config, self.source = stage, run, config, source
        self.divergence = Divergence(stage.accelerator, stage.name, stage.config, run)
        self.clock = Clock(stage.config, stage.accelerator, None, 0.0)
        self._held: IndexedSource | None = None  # what validation draws from

    def resume(self, budget: float | None = None) -> tuple[int, str | None]:
        """Load the newest state into the stage: its step, 0 in an empty run, and a line on what will not be exact.

        The clock, with `budget` seconds in all, starts where it stopped.
        """
        saved = self.run.load_state()
        spent = 0.0 if saved is None else float(saved.facts.get("seconds", 0.0))
        self.clock = Clock(self.stage.config, self.stage.accelerator, budget, spent)
        if saved is None:
            return 0, None
        self._check_optimizer(saved.folder)
        try:
            self.stage.load_state(saved.state)
        except (RuntimeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"{saved.folder} was written by another configuration and cannot be resumed: {reason}"
            ) from error
        if self.stage.accelerator.is_main_process:
            self.run.unpublish()
        changes = [*self._changed_circumstances(saved.facts), *self._changed_options(saved.folder)]
        return saved.step, f"resumed, but not exactly: {'; '.join(changes)}" if changes else None

    def _check_optimizer(self, folder: Path) -> None:
        """UserError where the moments of a saved step are another optimiser's."""
        then, now = (
            _flat(yaml.safe_load(text)).get(f"training.{self.stage.name}.optimizer", "adamw")
            for text in (_config_of(folder), dump(self.config))
        )
        if then != now:
            raise UserError(
                f"{folder} was trained with optimizer {then}, whose moments {now} cannot take up: set "
                f"training.{self.stage.name}.optimizer={then}, or start another run from its weights with --init"
            )

    def save(self, step: int, found: dict[str, float]) -> None:
        """Write `step-N`, with what `validate` found, and delete what need not be kept; SaveError in all processes.

        DivergedError, and nothing written, when there is anything in it that is not finite.
        """
        stage = self.stage
        failed: str | None = None
        diverged: str | None = None
        with stage.averaged():
            state = stage.state()
            if stage.accelerator.is_main_process:
                diverged = self.divergence.check_state(step, state, found)
            if stage.accelerator.is_main_process and diverged is None:
                try:
                    facts = {**self._circumstances(), **self._seconds(), **found}
                    self.run.save(step, stage.save, state, self.config, facts)
                    self.run.prune(stage.config.keep, stage.config.keep_best)
                except SaveError as error:
                    failed = str(error)
        [failed, diverged] = broadcast_object_list([failed, diverged])
        if diverged is not None:
            self.divergence.stop(diverged)
        if failed is not None:
            raise SaveError(failed)

    def validate(self) -> dict[str, float]:
        """`validation_loss`, the same in all processes, unless it is switched off."""
        found: list[dict[str, float]] = [{}]
        with self.stage.averaged():
            if self.stage.accelerator.is_main_process:
                found = [self._validation()]
        broadcast_object_list(found)
        return found[0]

    def _validation(self) -> dict[str, float]:
        """The loss of the averaged weights on a fixed draw: the same images, noise and levels at every save.

        The draw is that of step 0, which is never trained on, though its images are. Comparable between the steps
        of a run, whatever the batch size and the number of processes.
        """
        images = self.stage.config.validation_images
        if not images:
            return {}
        share = BatchShare(images, accumulation=images // VALIDATION_BATCH)
        if self._held is None:
            self._held = self.source.preview(images)
        stage, seed = self.stage, self.config.training.seed
        data = TrainingData(
            self._held,
            self.config.data,
            share,
            seed,
            stage.needs_images,
            unreadable=stage.unreadable,
            classes=self.config.tells_classes,
        )
        batches: Iterator[Batch] = (data[0, micro] for micro in range(share.accumulation))
        losses = [self.stage.validate(batch) for batch in batches]
        return {"validation_loss": torch.stack(losses).mean().item()}

    def _circumstances(self) -> dict[str, Any]:
        """What a step's numbers depend on besides the configuration."""
        accelerator = self.stage.accelerator
        return {
            "processes": accelerator.num_processes,
            "sharding": DIVISIONS.get(accelerator.distributed_type, "none"),
            "device": accelerator.device.type,
            "images": len(self.source),
            "torch": str(torch.__version__),
            "ldm": ldm.__version__,
        }

    def _seconds(self) -> dict[str, float]:
        """Of training, where they are counted."""
        return {} if self.clock.budget is None else {"seconds": round(self.clock.seconds, 1)}

    def _changed_circumstances(self, then: dict[str, Any]) -> Iterator[str]:
        consequences = {
            "processes": "sums are rounded otherwise",
            "sharding": "sums are rounded otherwise",
            "device": "other rounding",
            "images": "the order of the data is another",
            "torch": "perhaps other rounding",
            "ldm": "perhaps other arithmetic",
        }
        for name, value in self._circumstances().items():
            if name in then and then[name] != value:
                yield f"{name} {value}, was {then[name]} ({consequences[name]})"

    def _changed_options(self, folder: Path) -> Iterator[str]:
        then, now = (_flat(yaml.safe_load(text)) for text in (_config_of(folder), dump(self.config)))
        others = [name for name in TrainingConfig.model_fields if name not in (self.stage.name, "seed")]
        for path, value in now.items():
            last = path.rsplit(".", 1)[-1]
            irrelevant = last in HARMLESS or path == "data.workers" or any(f"training.{o}" in path for o in others)
            if last == "max_steps" and self.stage.config.decay == "constant":
                irrelevant = True
            if path in then and then[path] != value and not irrelevant:
                yield f"{path} {value}, was {then[path]}{_consequence(last)}"


def _consequence(option: str) -> str:
    told = {
        "batch_size": " (some images of this epoch come twice or not at all)",
        "gradient_accumulation": " (sums are rounded otherwise)",
        "max_steps": " (the learning rate falls otherwise)",
        "seed": " (all random draws are others from here on)",
    }
    return told.get(option, "")


def _config_of(folder: Path) -> str:
    path = folder / "config.yaml"
    return path.read_text() if path.is_file() else "{}"


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
