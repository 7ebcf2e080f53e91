"""States of networks and optimisers, whole, however FSDP2 divides them among processes.

An optimiser's state is kept by the position of its weights, as torch does where nothing is sharded, so that a run may
be resumed on another number of processes, sharded or not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from accelerate import Accelerator
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def network_state(accelerator: Accelerator, network: nn.Module) -> dict[str, Tensor]:
    """The whole `state_dict()`; where it is sharded, every process must come here, and each gets it on the CPU."""
    state = accelerator.unwrap_model(network).state_dict()
    return {name: _on_cpu(weight) for name, weight in state.items()}


def load_network_state(accelerator: Accelerator, network: nn.Module, state: dict[str, Tensor]) -> None:
    """Take over a whole `state_dict()`; RuntimeError where it is another network's."""
    network = accelerator.unwrap_model(network)
    own = network.state_dict()
    like = {name: divided(weight, own[name]) if name in own else weight for name, weight in state.items()}
    network.load_state_dict(like)


def optimizer_state(optimizer: Any) -> dict[str, Any]:
    """The whole `state_dict()` without base rates, which a configuration has; every process must come here."""
    state = _mapped(optimizer.state_dict())
    for group in state["param_groups"]:
        group.pop("initial_lr", None)
    return state


def _mapped(tree: Any) -> Any:
    """The tree with every sharded tensor made whole."""
    if isinstance(tree, dict):
        return {key: _mapped(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_mapped(value) for value in tree)
    return _on_cpu(tree) if isinstance(tree, Tensor) else tree


def load_optimizer_state(optimizer: Any, state: dict[str, Any]) -> None:
    """Take over the moments of a whole `state_dict()`, divided as the weights are and laid out in memory like them.

    torch's fused kernels walk through weights and moments side by side in memory: in channels_last they would pair a
    weight with another one's moments. Learning rate, betas and weight decay stay as the optimiser was made: a resumed
    run may have others.
    """
    options = [{key: option for key, option in group.items() if key != "params"} for group in optimizer.param_groups]
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


def _is_moment(value: Any, weight: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == weight.shape and value.ndim > 0


def _moment(whole: Tensor, weight: Tensor) -> Tensor:
    if is_shard(weight):
        return divided(whole, weight)
    return torch.empty_like(weight, dtype=whole.dtype, requires_grad=False).copy_(whole)


def _on_cpu(tensor: Tensor) -> Tensor:
    return undivided(tensor).cpu() if is_shard(tensor) else tensor


def undivided(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be divided; where it is, every process must come here."""
    return tensor.full_tensor() if is_shard(tensor) else tensor


def is_shard(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is one process' part of a whole, told without the module of DTensor: importing it is slow."""
    return hasattr(tensor, "full_tensor")


def divided(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, divided among the processes as `like` is, if it is."""
    if not is_shard(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)
