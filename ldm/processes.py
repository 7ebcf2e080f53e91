"""Divide work among the processes that `torchrun` or `accelerate launch` started."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class ProcessShare:
    """The share of one process: every `processes`-th item from item `rank` on."""

    rank: int = 0
    processes: int = 1

    @classmethod
    def of_environment(cls) -> ProcessShare:
        """Read the launcher's variables; without a launcher one process does all work."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))

    @property
    def is_first(self) -> bool:
        """Whether this process writes shared files."""
        return self.rank == 0

    def device(self) -> str | None:
        """Return the GPU of this process; None: there is one process, or no GPU."""
        import torch

        if self.processes == 1 or not torch.cuda.is_available():
            return None
        return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"

    def of(self, count: int) -> range:
        """Return the indices of this process' items, out of `count`."""
        return range(self.rank, count, self.processes)

    def gather(self, items: Sequence[Item]) -> list[Item]:
        """Return the results of all processes in the order of the items; all processes must call this equally often."""
        if self.processes == 1:
            return list(items)
        from accelerate import PartialState
        from accelerate.utils import gather_object, parse_flag_from_env

        PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # starts the process group
        numbered = [(self.rank + index * self.processes, item) for index, item in enumerate(items)]
        return [item for _, item in sorted(gather_object(numbered), key=lambda pair: pair[0])]

    def first_alone(self, make: Callable[[], Item]) -> Item:
        """Call `make` in the first process before the others, which find what it rendered or downloaded."""
        if not self.is_first:
            self.wait()
        made = make()
        if self.is_first:
            self.wait()
        return made

    def wait(self) -> None:
        """Wait until all processes have called this."""
        self.gather(())

    def leave(self) -> None:
        """Destroy the process group, if there is one."""
        if self.processes > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()
