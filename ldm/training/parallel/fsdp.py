"""FSDP2: weights, gradients and moments sharded among processes (Zhao et al. 2023), configured by accelerate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn

from ldm.training.parallel.strategy import ShardingStrategy, load_moments, without_base_rates


class FSDPStrategy(ShardingStrategy):
    """A network whose parameters are DTensors, and its optimizer."""

    def _prepare(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        if self.accelerator.mixed_precision != "no":
            self._autocast(network)
        return self.accelerator.prepare(network, optimizer)

    def _autocast(self, network: nn.Module) -> None:
        """Compute as with DDP: weights are gathered in half precision, gradients summed in float32, inputs kept.

        accelerate's own policy would also round all inputs, including the time steps.
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

    def step(self, clip: float | None) -> Tensor:
        """Clip the gradients to a norm, step the optimizer and clear them; return the norm () before clipping."""
        norm: Any = super().step(clip)
        return norm.full_tensor()

    def network_state(self) -> dict[str, Tensor]:
        """Return the whole `state_dict()` on the CPU of the main process, {} in others; all must call this."""
        from torch.distributed.checkpoint.state_dict import get_model_state_dict

        return get_model_state_dict(self.network, options=_whole())

    def load_network_state(self, state: Mapping[str, Tensor]) -> None:
        """Load a whole `state_dict()`, which every process holds.

        Raises:
            RuntimeError: if names or shapes differ.
        """
        from torch.distributed.checkpoint.state_dict import set_model_state_dict

        own = {name: tuple(weight.shape) for name, weight in self.network.state_dict().items()}
        if differing := {*own.items()} ^ {(name, tuple(weight.shape)) for name, weight in state.items()}:
            raise RuntimeError(f"{min(differing)[0]} is missing on one side or has another shape")
        set_model_state_dict(self.network, dict(state), options=_whole())

    def optimizer_state(self) -> dict[str, Any]:
        """Return the whole `state_dict()` without base rates, in the main process; all processes must call this."""
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        state = get_optimizer_state_dict(self.network, self.optimizer.optimizer, options=_whole())
        positions = {name: number for number, name in enumerate(self._names())}
        return without_base_rates(_renamed(state, positions.__getitem__)) if state else {}

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Load the moments of a whole `state_dict()`, which every process holds; options stay as configured.

        Raises:
            ValueError: if the weights are in other groups.
        """
        from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

        optimizer, names = self.optimizer.optimizer, self._names()
        counts = [len(group["params"]) for group in optimizer.param_groups]
        if [len(group["params"]) for group in state["param_groups"]] != counts:
            raise ValueError("its weights are in other groups of learning rates")
        named = _renamed(state, names.__getitem__)
        load_moments(optimizer, lambda: set_optimizer_state_dict(self.network, optimizer, named, options=_whole()))

    def _names(self) -> list[str]:
        """Return names of the optimizer's weights in the order of its groups."""
        name_of = {id(weight): name for name, weight in self.network.named_parameters()}
        return [name_of[id(weight)] for group in self.optimizer.param_groups for weight in group["params"]]

    def shard(self, tensors: Sequence[Tensor]) -> list[Any]:
        """Shard whole tensors as the network's parameters are."""
        from torch.distributed.tensor import distribute_tensor

        weights: list[Any] = list(self.network.parameters())
        return [
            distribute_tensor(tensor.detach().to(weight.device), weight.device_mesh, weight.placements)
            for tensor, weight in zip(tensors, weights, strict=True)
        ]

    def local(self, tensors: Sequence[Any]) -> list[Tensor]:
        """Return this process' shards, sharing their memory."""
        return [tensor.to_local() for tensor in tensors]

    def unshard(self, shard: Any) -> Tensor:
        """Gather a whole tensor; all processes must call this."""
        return shard.full_tensor()


def _whole() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True)


def _renamed(state: Mapping[str, Any], key_of: Callable[[Any], Any]) -> dict[str, Any]:
    """Replace the keys of weights in an optimizer's state."""
    groups = [{**group, "params": [key_of(key) for key in group["params"]]} for group in state["param_groups"]]
    return {"state": {key_of(key): values for key, values in state["state"].items()}, "param_groups": groups}
