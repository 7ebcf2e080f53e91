"""Work on many things divided among the processes that `torchrun` or `accelerate launch` started."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class ProcessShare:
    """What one process does: every `processes`-th thing from number `rank` on."""

    rank: int = 0
    processes: int = 1

    @classmethod
    def of_environment(cls) -> ProcessShare:
        """As the launcher tells it; all of the work where there is none."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes what there is one of."""
        return self.rank == 0

    def device(self) -> str | None:
        """A GPU for each process of a machine; None where one process may choose."""
        import torch

        if self.processes == 1 or not torch.cuda.is_available():
            return None
        return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"

    def of(self, count: int) -> range:
        """The numbers of this process' things, out of `count`."""
        return range(self.rank, count, self.processes)

    def gather(self, items: Sequence[Item]) -> list[Item]:
        """All processes' results in the order of their numbers; every process must come here equally often."""
        if self.processes == 1:
            return list(items)
        from accelerate import PartialState
        from accelerate.utils import gather_object, parse_flag_from_env

        PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # starts the process group
        numbered = [(self.rank + index * self.processes, item) for index, item in enumerate(items)]
        return [item for _, item in sorted(gather_object(numbered), key=lambda pair: pair[0])]

    def first_alone(self, make: Callable[[], Item]) -> Item:
        """What `make` returns, made by the first process before the others, which find what it rendered or fetched."""
        if not self.is_first:
            self.wait()
        made = make()
        if self.is_first:
            self.wait()
        return made

    def wait(self) -> None:
        """Go on when all processes have come here."""
        self.gather(())

    def leave(self) -> None:
        """Close the process group, if there is one."""
        if self.processes > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()
