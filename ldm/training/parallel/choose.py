"""Choose how the networks of a run are distributed among processes."""

from __future__ import annotations

from accelerate import Accelerator, DistributedType

from ldm.training.parallel.deepspeed import DeepSpeedStrategy
from ldm.training.parallel.fsdp import FSDPStrategy
from ldm.training.parallel.strategy import ShardingStrategy

SHARDED: dict[DistributedType, type[ShardingStrategy]] = {
    DistributedType.FSDP: FSDPStrategy,
    DistributedType.DEEPSPEED: DeepSpeedStrategy,
}


def choose_strategy(accelerator: Accelerator) -> type[ShardingStrategy]:
    """Return the strategy that accelerate is configured for."""
    return SHARDED.get(accelerator.distributed_type, ShardingStrategy)
