"""One network and its optimizer in every process, replicated (`ShardingStrategy`) or sharded by FSDP2 or DeepSpeed.

Saved states are whole and the same for all strategies, with an optimizer's state by the position of its weights, so
that a run resumes on another number of processes and with another strategy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

T = TypeVar("T")


class ShardingStrategy:
    """A network and its optimizer, whole in every process: one process, or several with DistributedDataParallel."""

    def __init__(self, accelerator: Accelerator, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.accelerator = accelerator
        self.wrapped, self.optimizer = self._prepare(network, optimizer)
        self.network = accelerator.unwrap_model(self.wrapped)

    def _prepare(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        return self.accelerator.prepare(network, optimizer)  # together: sharding replaces the optimizer's weights

    def micro_batches(self, batches: Sequence[T]) -> Iterator[T]:
        """Yield the micro-batches of a step; gradients are synchronized across processes in the last one only."""
        for number, batch in enumerate(batches, 1):
            with self.synchronize(number == len(batches)):
                yield batch

    def synchronize(self, last: bool) -> AbstractContextManager[None]:
        """Return the context of a micro-batch's forward and backward pass."""
        return nullcontext() if last else self.accelerator.no_sync(self.wrapped)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss () to the network's."""
        self.accelerator.backward(loss)

    def step(self, clip: float | None) -> Tensor:
        """Clip the gradients to a norm, step the optimizer and clear them; return the norm () before clipping."""
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), math.inf if clip is None else clip)
        assert norm is not None  # None only with DeepSpeed
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm.detach()

    def network_state(self) -> dict[str, Tensor]:
        """Return the whole `state_dict()` in the main process; all processes must call this."""
        return self.network.state_dict()

    def load_network_state(self, state: Mapping[str, Tensor]) -> None:
        """Load a whole `state_dict()`.

        Raises:
            RuntimeError: if names or shapes differ.
        """
        self.network.load_state_dict(state)

    def optimizer_state(self) -> dict[str, Any]:
        """Return the whole `state_dict()` without base rates, in the main process; all processes must call this."""
        return without_base_rates(self.optimizer.state_dict())

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Load the moments of a whole `state_dict()`; learning rates, betas and weight decay stay as configured.

        Moments take the memory format of their weights, since fused kernels walk through both side by side.
        """
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        moments = {
            number: {name: _laid_out(value, weights[number]) for name, value in values.items()}
            for number, values in state["state"].items()
        }
        load_moments(self.optimizer, lambda: self.optimizer.load_state_dict({**state, "state": moments}))

    def shard(self, tensors: Sequence[Tensor]) -> list[Any] | None:
        """Shard whole tensors as the network's parameters are; None: parameters are not sharded."""
        return None

    def local(self, tensors: Sequence[Any]) -> list[Tensor]:
        """Return this process' shards of tensors that are sharded as the parameters are, sharing their memory."""
        return list(tensors)

    def unshard(self, shard: Any) -> Tensor:
        """Gather a whole tensor; all processes must call this."""
        return shard


def load_moments(optimizer: torch.optim.Optimizer, load: Callable[[], None]) -> None:
    """Call `load`, which loads a state into an optimizer, and restore the options of the optimizer's groups."""
    options = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    load()
    for group, own in zip(optimizer.param_groups, options, strict=True):
        group.update(own)


def without_base_rates(state: dict[str, Any]) -> dict[str, Any]:
    """Drop `initial_lr`, which the configuration decides, from the groups of an optimizer's state."""
    for group in state.get("param_groups", ()):
        group.pop("initial_lr", None)
    return state


def _laid_out(value: Any, weight: Tensor) -> Any:
    """Copy a moment into memory laid out as its weight; other values are returned as they are."""
    if not isinstance(value, Tensor) or value.shape != weight.shape or value.ndim == 0:
        return value
    return torch.empty_like(weight, dtype=value.dtype, requires_grad=False).copy_(value)
