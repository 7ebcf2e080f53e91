"""Training that stops to be finite: which step and which term of the loss did it, and what is still good.

Nothing waits for the device in a step: the losses of all steps since the last check are kept there, and are looked
through when something is logged or saved.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ldm.config.training import StageConfig
from ldm.errors import UserError
from ldm.training.runs.run import Run

PATIENCE = 20  # steps in a row without a finite loss that a gradient scaler may skip
SUMS = ("nll", "loss")  # of other terms, named only where all of those are finite
GRADIENTS = {"gradient_norm": "the gradient", "discriminator_gradient_norm": "the discriminator's gradient"}


class DivergedError(UserError):
    """Training came to numbers that are not finite, and cannot go on."""


class Divergence:
    """Finds the first loss or gradient that is not finite, the same in all processes, and stops them together.

    With a gradient scaler (fp16) a step of infinite gradients is skipped and counted; only a loss that is not finite
    for `PATIENCE` steps in a row stops training.
    """

    def __init__(self, accelerator: Accelerator, stage: str, config: StageConfig, run: Run) -> None:
        self.accelerator, self.stage, self.config, self.run = accelerator, stage, config, run
        self.scaled = accelerator.scaler is not None
        self._steps: list[tuple[int, list[str], Tensor]] = []
        self._failed: list[tuple[int, dict[str, float]]] = []  # the steps in a row whose loss was not finite

    def note(self, step: int, losses: Mapping[str, Tensor]) -> None:
        """Keep the detached scalars of a step."""
        self._steps.append((step, list(losses), torch.stack(list(losses.values()))))

    def check(self) -> dict[str, float]:
        """Look through the steps since the last check; all processes must come here.

        Returns the share of steps that a gradient scaler skipped, as `skipped`, where there is one. DivergedError in
        the main process, and the end of the others with status 2, when a loss or a gradient is not finite.
        """
        if not self._steps:
            return {}
        rows = torch.cat([values for _, _, values in self._steps])
        values = iter(self.accelerator.reduce(rows, "sum").tolist())  # a sum is finite where all processes are
        steps = [(step, {name: next(values) for name in names}) for step, names, _ in self._steps]
        self._steps = []
        skipped = 0
        for step, losses in steps:
            failed = {name: value for name, value in losses.items() if not math.isfinite(value)}
            skipped += bool(failed)
            self._judge(step, failed)
        return {"skipped": skipped / len(steps)} if self.scaled else {}

    def _judge(self, step: int, failed: dict[str, float]) -> None:
        of_losses = failed.keys() - GRADIENTS.keys()
        if not of_losses:
            self._failed = []
        if not failed or (self.scaled and not of_losses):
            return
        self._failed.append((step, failed))
        if len(self._failed) == (PATIENCE if self.scaled else 1):
            first, terms = self._failed[0]
            row = f", as in all of the {PATIENCE} steps from there on" if self.scaled else ""
            self.stop(f"in step {first}: {describe(terms)}{row}")

    def check_state(self, step: int, state: dict[str, Any], found: Mapping[str, float]) -> str | None:
        """Why a state that is to be saved is not good, if it is not: a tensor or a validation loss is not finite."""
        if (name := next(not_finite(state), None)) is not None:
            return f"after step {step}: {name} is not finite, though all losses were"
        if any(not math.isfinite(value) for value in found.values()):
            return f"after step {step}: the averaged weights give a validation loss that is not finite"
        return None

    def stop(self, reason: str) -> None:
        """End training with one line; all processes must come here. The others end silently."""
        if not self.accelerator.is_main_process:
            raise SystemExit(2)
        raise DivergedError(f"training diverged {reason}. {self._remains()} {self._advice()}")

    def _remains(self) -> str:
        steps = self.run.steps()
        if not steps:
            return f"No step had been saved in {self.run.path}: start again with --resume"
        return f"{steps[-1].name} in {self.run.path} is the last good state: go on from it with --resume"

    def _advice(self) -> str:
        config, section = self.config, f"training.{self.stage}"
        clip = "" if config.gradient_clip is None else f", which is {config.gradient_clip:g}"
        words = [f"a lower {section}.learning_rate than {config.learning_rate:g}", f"a lower gradient_clip{clip}"]
        if config.mixed_precision != "no":
            wider = "bf16 or no" if config.mixed_precision == "fp16" else "no"
            words.append(f"mixed_precision {wider} in place of {config.mixed_precision}")
        return f"and {', or '.join(words)}"


def describe(failed: Mapping[str, float]) -> str:
    """What of a step's losses and gradient norms is not finite: `the loss term kl (nan) is not finite`."""
    terms = [name for name in failed if name not in (*SUMS, *GRADIENTS)] or [name for name in failed if name in SUMS]
    if terms:
        named = " and ".join(f"{name} ({failed[name]:g})" for name in terms)
        return f"the loss terms {named} are not finite" if len(terms) > 1 else f"the loss term {named} is not finite"
    [name] = list(failed)[:1]
    return f"{GRADIENTS[name]} (its norm is {failed[name]:g}) is not finite, though all losses are"


def not_finite(tree: Any, path: str = "") -> Iterator[str]:
    """The names of tensors in nested dicts and lists that are not finite: `networks.unet.conv_in.weight`."""
    if isinstance(tree, Tensor):
        if tree.is_floating_point() and not torch.isfinite(tree).all():
            yield path
    elif isinstance(tree, dict | list | tuple):
        for name, child in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from not_finite(child, f"{path}.{name}" if path else str(name))
