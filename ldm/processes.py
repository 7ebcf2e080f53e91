"""Divide work among the processes that `torchrun`, `accelerate launch`, `mpirun` or `srun` started."""

from __future__ import annotations

import os
import re
import signal
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ldm.errors import UserError, UserNote

Item = TypeVar("Item")

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, the end of a job, a closed terminal

# torchrun's variables, which PyTorch and accelerate read, and their names with MPI and inside of `srun`.
VARIABLES = {
    "WORLD_SIZE": ("OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"),
    "RANK": ("OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"),
    "LOCAL_RANK": ("OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"),
    "LOCAL_WORLD_SIZE": (
        *("OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"),
        "SLURM_STEP_TASKS_PER_NODE",
    ),
}


@dataclass(frozen=True)
class ProcessShare:
    """The share of one process: every `processes`-th item from item `rank` on."""

    rank: int = 0
    processes: int = 1

    @classmethod
    def of_environment(cls) -> ProcessShare:
        """Read the launcher's variables; without a launcher one process does all work.

        Raises:
            UserError: if the processes cannot find each other.
        """
        join_launcher()
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


def join_launcher() -> None:
    """Complete the variables that PyTorch and accelerate need to connect the processes of a launcher.

    Raises:
        UserError: if the address of the first process is unknown.
    """
    if "WORLD_SIZE" not in os.environ:
        _translate_variables()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        import torch

        if not torch.cuda.is_available():
            os.environ["ACCELERATE_USE_CPU"] = "true"  # without it and a GPU, accelerate does not connect processes
    elif {"MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"} <= os.environ.keys():  # accelerate's, for several processes
        note = (
            "accelerate launch was asked for several processes but started one, as it does on a CPU: use "
            "torchrun --nproc_per_node N -m ldm ..."
        )
        warnings.warn(note, UserNote, stacklevel=2)


def _translate_variables() -> None:
    """Set torchrun's variables from those of MPI or SLURM, if these started several processes."""
    values = {name: _first_number(others) for name, others in VARIABLES.items()}
    processes = values["WORLD_SIZE"]
    if processes is None or processes == 1:
        return
    values["LOCAL_WORLD_SIZE"] = local = values["LOCAL_WORLD_SIZE"] or processes
    if local < processes and "MASTER_ADDR" not in os.environ:
        raise UserError(
            f"{processes} processes were started on several nodes, but MASTER_ADDR is not set: export it with the "
            'host name of the first node, with SLURM $(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
        )
    os.environ.update({name: str(value or 0) for name, value in values.items()})
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")


def _first_number(names: Sequence[str]) -> int | None:
    """Return the number at the start of the first of these variables that is set, such as 2 of `2(x4)`."""
    found = next((os.environ[name] for name in names if name in os.environ), "")
    match = re.match(r"\d+", found)
    return int(match[0]) if match else None
