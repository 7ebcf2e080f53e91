"""How the weights of a network are divided among processes: not at all, or by FSDP2; by DeepSpeed in `zero`.

States are whole whatever the sharding is, and an optimiser's state is kept by the position of its weights, as torch
does where nothing is divided. So a run may be resumed on another number of processes and with another sharding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn

from ldm.training.parallel.sharding import divided, is_shard, undivided


class ShardingStrategy:
    """A network and its optimiser as accelerate prepares them: whole in every process, or divided by FSDP2."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    def prepare(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """Hand both to accelerate, together, since dividing replaces the weights that the optimiser holds."""
        if self.accelerator.distributed_type == DistributedType.FSDP and self.accelerator.mixed_precision != "no":
            self._autocast(network)
        return self.accelerator.prepare(network, optimizer)

    def _autocast(self, network: nn.Module) -> None:
        """Let a network that FSDP2 will divide compute as others do: weights come in half precision, sums in float32.

        accelerate's own policy would round all that the network is given, its time steps too.
        """
        from torch.distributed.fsdp import MixedPrecisionPolicy

        half = torch.bfloat16 if self.accelerator.mixed_precision == "bf16" else torch.float16
        policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
        self.accelerator.state.fsdp_plugin.mixed_precision_policy = policy
        plain = network.forward

        def forward(*inputs: Any) -> Any:
            with self.accelerator.autocast():
                return plain(*inputs)

        network.forward = convert_outputs_to_fp32(forward)

    def micro_batch(self, network: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Within it one micro-batch goes forward and back; gradients of all processes meet in the last one only."""
        return nullcontext() if last else self.accelerator.no_sync(network)

    def backward(self, network: nn.Module, loss: Tensor) -> None:
        """Add the gradients of a loss () to those of the network."""
        self.accelerator.backward(loss)

    def step(self, network: nn.Module, optimizer: Any, clip: float | None) -> Tensor:
        """Clip the gradients to a norm, step the optimiser and clear them; the norm () before clipping."""
        norm = self.accelerator.clip_grad_norm_(network.parameters(), math.inf if clip is None else clip)
        assert norm is not None  # only DeepSpeed has none
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return undivided(norm.detach())

    def network_state(self, network: nn.Module) -> dict[str, Tensor]:
        """The whole `state_dict()`; where it is divided, every process must come here, and each gets it on the CPU."""
        state = self.accelerator.unwrap_model(network).state_dict()
        return {name: _on_cpu(weight) for name, weight in state.items()}

    def load_network_state(self, network: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Take over a whole `state_dict()`; RuntimeError where it is another network's."""
        network = self.accelerator.unwrap_model(network)
        own = network.state_dict()
        like = {name: divided(weight, own[name]) if name in own else weight for name, weight in state.items()}
        network.load_state_dict(like)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The whole `state_dict()` without base rates, which a configuration has; every process must come here."""
        state = _mapped(optimizer.state_dict())
        for group in state["param_groups"]:
            group.pop("initial_lr", None)
        return state

    def load_optimizer_state(self, optimizer: Any, state: dict[str, Any]) -> None:
        """Take over the moments of a whole `state_dict()`, divided as the weights are, in memory laid out like them.

        torch's fused kernels walk through weights and moments side by side in memory: in channels_last they would pair
        a weight with another one's moments. Learning rate, betas and weight decay stay as the optimiser was made: a
        resumed run may have others.
        """
        options = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        moments = {
            number: {
                name: _moment(value, weights[number]) if _is_moment(value, weights[number]) else value
                for name, value in values.items()
            }
            for number, values in state["state"].items()
        }
        optimizer.load_state_dict({**state, "state": moments})
        for group, own in zip(optimizer.param_groups, options, strict=True):
            group.update(own)


def _mapped(tree: Any) -> Any:
    """The tree with every sharded tensor made whole."""
    if isinstance(tree, dict):
        return {key: _mapped(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_mapped(value) for value in tree)
    return _on_cpu(tree) if isinstance(tree, Tensor) else tree


def _is_moment(value: Any, weight: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == weight.shape and value.ndim > 0


def _moment(whole: Tensor, weight: Tensor) -> Tensor:
    if is_shard(weight):
        return divided(whole, weight)
    return torch.empty_like(weight, dtype=whole.dtype, requires_grad=False).copy_(whole)


def _on_cpu(tensor: Tensor) -> Tensor:
    return undivided(tensor).cpu() if is_shard(tensor) else tensor
