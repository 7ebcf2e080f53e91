"""Random numbers of training as a pure function of (seed, step, slot, purpose).

A *slot* is the index of a sample in the global batch. As nothing depends on the process, one process and many see the
same numbers, and a resumed run continues exactly without saved generators.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


class StepRandom:
    """Independent random streams, one for each (step, slot, purpose)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def generator(self, purpose: str, step: int, slot: int = 0) -> torch.Generator:
        """Return the CPU generator of a step and slot."""
        words = f"{self.seed}/{purpose}/{step}/{slot}".encode()
        digest = hashlib.blake2b(words, digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little"))

    def normal(self, purpose: str, step: int, slots: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Standard normal numbers, (len(slots), *shape), float32."""
        return torch.stack([torch.randn(*shape, generator=self.generator(purpose, step, slot)) for slot in slots])

    def uniform(self, purpose: str, step: int, slots: Sequence[int]) -> Tensor:
        """Uniform numbers in [0, 1), (len(slots),), float64."""
        numbers = [torch.rand((), dtype=torch.float64, generator=self.generator(purpose, step, s)) for s in slots]
        return torch.stack(numbers)

    def choice(self, purpose: str, step: int, slot: int, count: int) -> int:
        """Return a uniform choice from range(count)."""
        return int(torch.randint(count, (), generator=self.generator(purpose, step, slot)))
