"""Diagnose overfitting: the training loss falls while the validation loss rises."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ldm.training.diagnostics.symptoms import Diagnosis

RISEN = 1.05  # the validation loss, by the lowest there was
SAVES = 2  # validations in a row that are above the lowest


class Validated(NamedTuple):
    """The losses of one save."""

    step: int
    validation: float
    training: float  # mean since the save before


def overfitting(course: Sequence[Validated]) -> Iterator[Diagnosis]:
    """Find a validation loss that has risen since its lowest value, while the training loss has fallen."""
    if len(course) <= SAVES:
        return
    best, last = min(course, key=lambda each: each.validation), course[-1]
    risen = best.validation > 0 and all(each.validation > RISEN * best.validation for each in course[-SAVES:])
    if risen and last.training < best.training:
        yield Diagnosis(
            "overfitting",
            f"the validation loss is {last.validation:.3g}, and it was {best.validation:.3g} at step {best.step}, "
            f"while the training loss fell from {best.training:.3g} to {last.training:.3g}. The model learns its "
            f"training images by heart: use step {best.step}, add data or data.random_flip, or train fewer steps",
        )
