"""Several prompts for one image, each with a weight (Liu et al. 2022)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ldm.errors import UserError

T = TypeVar("T")


class Composed(NamedTuple):
    """What an image shall show at once: texts and what each counts; a negative weight leads away from its text."""

    parts: tuple[tuple[str, float], ...]

    @classmethod
    def parse(cls, text: str) -> str | Composed:
        """Parse `a dog AND a hat :0.8`: texts between capital ANDs, each followed by its weight if that is not 1.

        A text without AND is that text itself. Raises UserError if a text is missing.
        """
        texts = re.split(r"\bAND\b", text)
        return cls(tuple(_weighted(part, text) for part in texts)) if len(texts) > 1 else text

    def __str__(self) -> str:
        return " AND ".join(text if weight == 1 else f"{text} :{weight:g}" for text, weight in self.parts)


Prompt = str | Composed


def _weighted(part: str, whole: str) -> tuple[str, float]:
    match = re.fullmatch(r"(.*?)(?:\s*:\s*([-+]?(?:\d+\.?\d*|\.\d+)))?\s*", part, re.DOTALL)
    assert match is not None  # the weight may be missing, and the text is anything
    text, weight = match[1].strip(), float(match[2] or 1)
    if not text:
        raise UserError(f"prompt {whole!r}: AND stands between two texts, such as `a dog AND a hat :0.8`")
    return text, weight


class Mixture(NamedTuple):
    """Which rows of a condition belong to which image of a batch, and what each counts, both (R,)."""

    owners: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> Mixture:
        """Return a copy on a device."""
        return Mixture(self.owners.to(device), self.weights.to(device))


def spread(subjects: Sequence[T | Composed]) -> tuple[list[T | str], Mixture | None]:
    """Return the texts of composed subjects in their places, and which subject each belongs to.

    None where no subject is composed. Raises UserError for a weight that is not finite.
    """
    if not any(isinstance(subject, Composed) for subject in subjects):
        return list(subjects), None  # type: ignore[arg-type]
    told: list[T | str] = []
    owners, weights = [], []
    for owner, subject in enumerate(subjects):
        for text, weight in subject.parts if isinstance(subject, Composed) else ((subject, 1.0),):
            told.append(text)
            owners.append(owner)
            weights.append(weight)
    if not all(map(math.isfinite, weights)):
        raise UserError(f"the weights of prompts, {weights}, must be numbers to multiply by")
    return told, Mixture(torch.tensor(owners), torch.tensor(weights))
