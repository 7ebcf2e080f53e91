"""Detect NaN and infinite losses and gradients, and name the step, the term and what to do.

Steps do not wait for the device: the losses since the last check are checked when something is logged or saved.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ldm.config.training import StageConfig
from ldm.errors import UserError
from ldm.training.runs.run import Run

PATIENCE = 20  # consecutive steps without a finite loss after which a gradient scaler cannot help
SUMS = ("nll", "loss")  # sums of other terms, named only if all of those are finite
GRADIENTS = {"gradient_norm": "the gradient", "discriminator_gradient_norm": "the discriminator's gradient"}


class DivergedError(UserError):
    """Losses or gradients are not finite; training cannot continue."""


class Divergence:
    """Finds the first loss or gradient that is not finite, the same one in all processes, and stops training.

    With a gradient scaler (fp16) steps with infinite gradients are skipped and counted; only a loss that is not finite
    for `PATIENCE` consecutive steps stops training.
    """

    def __init__(self, accelerator: Accelerator, stage: str, config: StageConfig, run: Run) -> None:
        self.accelerator, self.stage, self.config, self.run = accelerator, stage, config, run
        self.scaled = accelerator.scaler is not None
        self._failed: list[tuple[int, dict[str, float]]] = []  # consecutive steps whose loss was not finite

    def check(self, steps: Sequence[tuple[int, Mapping[str, Tensor]]]) -> dict[str, float]:
        """Check the detached losses () of steps, in order; all processes must call this.

        Returns:
            With a gradient scaler the share of steps that it `skipped`.

        Raises:
            DivergedError: in the main process, if a loss or a gradient is not finite; the others exit with status 2.
        """
        if not steps:
            return {}
        rows = torch.stack([value for _, losses in steps for value in losses.values()])
        values = iter(self.accelerator.reduce(rows, "sum").tolist())  # a sum is finite if all processes' values are
        skipped = 0
        for step, losses in steps:
            failed = {name: value for name in losses if not math.isfinite(value := next(values))}
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
            row = f", nor in the {PATIENCE - 1} steps after it" if self.scaled else ""
            self.stop(f"in step {first}: {describe(terms)}{row}")

    def check_state(self, step: int, state: dict[str, Any], found: Mapping[str, float]) -> str | None:
        """Return why a state must not be saved: a tensor or a validation loss is not finite; None: it is good."""
        if (name := next(not_finite(state), None)) is not None:
            return f"after step {step}: {name} is not finite, but all losses were"
        if any(not math.isfinite(value) for value in found.values()):
            return f"after step {step}: the validation loss of the averaged weights is not finite"
        return None

    def stop(self, reason: str) -> None:
        """End training with one line from the main process; all processes must call this."""
        if not self.accelerator.is_main_process:
            raise SystemExit(2)
        raise DivergedError(f"training diverged {reason}. {self._remains()} {self._advice()}")

    def _remains(self) -> str:
        steps = self.run.steps()
        if not steps:
            return f"No step was saved in {self.run.path}: start again with --resume"
        return f"{steps[-1].name} in {self.run.path} is the last good state: continue from it with --resume"

    def _advice(self) -> str:
        config, section = self.config, f"training.{self.stage}"
        clip = "" if config.gradient_clip is None else f", which is {config.gradient_clip:g}"
        words = [f"a lower {section}.learning_rate than {config.learning_rate:g}", f"a lower gradient_clip{clip}"]
        if config.mixed_precision != "no":
            wider = "bf16 or no" if config.mixed_precision == "fp16" else "no"
            words.append(f"mixed_precision {wider} instead of {config.mixed_precision}")
        return f"and {', or '.join(words)}"


def describe(failed: Mapping[str, float]) -> str:
    """Name the losses and gradient norms that are not finite: `the loss term kl (nan) is not finite`."""
    terms = [name for name in failed if name not in (*SUMS, *GRADIENTS)] or [name for name in failed if name in SUMS]
    if terms:
        named = " and ".join(f"{name} ({failed[name]:g})" for name in terms)
        return f"the loss terms {named} are not finite" if len(terms) > 1 else f"the loss term {named} is not finite"
    [name] = list(failed)[:1]
    return f"{GRADIENTS[name]} (its norm is {failed[name]:g}) is not finite, but all losses are"


def not_finite(tree: Any, path: str = "") -> Iterator[str]:
    """Yield the names of tensors in nested dicts and lists that are not finite: `networks.unet.conv_in.weight`."""
    if isinstance(tree, Tensor):
        if tree.is_floating_point() and not torch.isfinite(tree).all():
            yield path
    elif isinstance(tree, dict | list | tuple):
        for name, child in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from not_finite(child, f"{path}.{name}" if path else str(name))
