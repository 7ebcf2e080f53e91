"""Samples that cannot be read."""

from __future__ import annotations

from dataclasses import dataclass

from ldm.errors import UserError


@dataclass(frozen=True)
class Broken:
    """A sample that was skipped."""

    name: str  # the file's, or `shard.tar:key`
    reason: str


class UnreadableError(UserError):
    """A sample cannot be used: carries its name and the reason."""

    def __init__(self, name: str, fault: BaseException | str) -> None:
        words = getattr(fault, "strerror", None) or str(fault) or type(fault).__name__
        self.broken = Broken(name, " ".join(words.split())[:200])
        super().__init__(f"{name} cannot be read: {self.broken.reason}")

    def __reduce__(self) -> tuple[type[UnreadableError], tuple[str, str]]:
        return UnreadableError, (self.broken.name, self.broken.reason)  # it may cross from a loader process
