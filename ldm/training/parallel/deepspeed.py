"""DeepSpeed ZeRO (Rajbhandari et al. 2020), configured by accelerate.

Stage 1 shards the moments among processes, stage 2 also gradients, stage 3 also weights. DeepSpeed's own checkpoints
are pickles for a fixed number of processes; here whole tensors are gathered and set one by one, so that states are the
same as with the other strategies.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn

from ldm.config.training import StageConfig
from ldm.errors import UserError, install_extra
from ldm.training.parallel.strategy import ShardingStrategy

MOMENTS = ("exp_avg", "exp_avg_sq")
OURS = ("optimizer", "scheduler", "fp16", "bf16", "amp")  # sections that would override ldm's configuration


def is_requested() -> bool:
    """Return whether accelerate was configured for DeepSpeed.

    Raises:
        UserError: if DeepSpeed is not installed.
    """
    requested = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    if requested and importlib.util.find_spec("deepspeed") is None:
        raise UserError(f"accelerate is configured for DeepSpeed, which is not installed: {install_extra('deepspeed')}")
    return requested


def configure(accelerator: Accelerator, settings: StageConfig) -> None:
    """Copy a stage's configuration into DeepSpeed's.

    Weights and moments stay in float32 and bf16 is the precision of computation, as without DeepSpeed.

    Raises:
        UserError: if DeepSpeed does not support a setting.
    """
    plugin = accelerator.state.deepspeed_plugin
    config = plugin.deepspeed_config
    _check(config, plugin.zero_stage, settings)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    config["train_micro_batch_size_per_gpu"] = max(
        settings.batch_size // (accelerator.num_processes * settings.gradient_accumulation), 1
    )
    config["train_batch_size"] = "auto"
    config["gradient_accumulation_steps"] = 1  # the stage divides the loss and marks the last micro-batch
    config["gradient_clipping"] = settings.gradient_clip or 0.0
    if settings.mixed_precision == "bf16":
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    if plugin.zero_stage == 3:
        from transformers.integrations import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()  # frozen encoders are loaded whole


def _check(config: Mapping[str, Any], stage: int, settings: StageConfig) -> None:
    if stage not in (1, 2, 3):
        raise UserError(f"DeepSpeed with zero_stage {stage} shards nothing: use 1, 2 or 3, or configs/accelerate/ddp")
    for name in OURS:
        section = config.get(name)
        if section is not None and (
            not isinstance(section, dict) or section.get("enabled", True) not in (False, "auto")
        ):
            raise UserError(f"DeepSpeed's configuration sets {name!r}, which training.STAGE sets: remove it")
    for name in ("offload_optimizer", "offload_param"):
        device = (config["zero_optimization"].get(name) or {}).get("device", "none")
        if device not in ("none", None):
            raise UserError(f"DeepSpeed's {name} ({device}) is not supported: set it to none")
    if settings.mixed_precision == "fp16":
        raise UserError("mixed_precision fp16 is not supported with DeepSpeed: use bf16 or no, or DDP or FSDP2")
    if settings.optimizer != "adamw":
        raise UserError(f"DeepSpeed supports optimizer adamw only, not {settings.optimizer}: set optimizer=adamw")
    if settings.channels_last:
        raise UserError("DeepSpeed stores weights in flat buffers: set channels_last=false")
    if settings.compile and stage == 3:
        raise UserError("compile is not supported with DeepSpeed's stage 3: set compile=false, or use stage 2")


class DeepSpeedStrategy(ShardingStrategy):
    """A network in DeepSpeed's engine, and its AdamW; a process has one of them."""

    def __init__(self, accelerator: Accelerator, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        groups = [list(group["params"]) for group in optimizer.param_groups]
        self._weights = [weight for group in groups for weight in group]  # in the order of the optimizer's groups
        self._counts = [len(group) for group in groups]
        super().__init__(accelerator, network, optimizer)

    def _prepare(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        if "torch_autocast" in self.accelerator.state.deepspeed_plugin.deepspeed_config:
            network.forward = convert_outputs_to_fp32(network.forward)
        engine, wrapped = self.accelerator.prepare(network, optimizer)
        _start_moments(wrapped)
        return engine, wrapped

    def synchronize(self, last: bool) -> AbstractContextManager[None]:
        """Mark whether the micro-batch is the last one before the optimizer's step."""
        self._engine.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss () to the network's."""
        self._engine.backward(loss)

    def step(self, clip: float | None) -> Tensor:
        """Clip as configured, step and clear the gradients; return the norm () before clipping."""
        self._engine.step()
        norm = torch.as_tensor(self._engine.get_global_grad_norm(), device=self.accelerator.device, dtype=torch.float32)
        return norm.masked_fill(norm < 0, torch.nan).detach()  # DeepSpeed returns -1 for a norm that is not finite

    @property
    def _engine(self) -> Any:
        return self.wrapped

    def network_state(self) -> dict[str, Tensor]:
        """Return the whole `state_dict()` on the CPU; all processes must call this."""
        own = self.network.state_dict(keep_vars=True)
        return {name: _whole(weight).detach().cpu() for name, weight in own.items()}

    def load_network_state(self, state: Mapping[str, Tensor]) -> None:
        """Load a whole `state_dict()`.

        Raises:
            RuntimeError: if names or shapes differ.
        """
        own = self.network.state_dict(keep_vars=True)
        shapes = {name: tuple(getattr(weight, "ds_shape", weight.shape)) for name, weight in own.items()}
        for name in sorted({*shapes, *state}):
            if name not in state or shapes.get(name) != tuple(state[name].shape):
                raise RuntimeError(f"{name} is missing on one side or has another shape")
        for name, weight in own.items():
            _set_weight(weight, state[name].to(self.accelerator.device))

    def optimizer_state(self) -> dict[str, Any]:
        """Return torch's `state_dict()`, whole and without base rates; all processes must call this."""
        from deepspeed.utils import safe_get_full_optimizer_state

        step = torch.tensor(max(float(kept["step"]) for kept in _kept(self.optimizer).values()))
        moments = {
            number: {name: safe_get_full_optimizer_state(weight, name).cpu() for name in MOMENTS}
            for number, weight in enumerate(self._weights)
        }
        state = {number: {"step": step.clone(), **values} for number, values in moments.items()}
        return {"state": state, "param_groups": list(self._groups())}

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Load the moments of a whole `state_dict()`; rates, betas and weight decay stay as configured.

        Raises:
            ValueError: if the weights are in other groups or were trained for different numbers of steps.
        """
        from deepspeed.utils import safe_set_full_optimizer_state

        if [len(group["params"]) for group in state["param_groups"]] != self._counts:
            raise ValueError("its weights are in other groups of learning rates")
        steps = {int(values["step"]) for values in state["state"].values()} or {0}
        if len(steps) > 1:
            raise ValueError("its weights were trained for different numbers of steps; DeepSpeed has one for all")
        for kept in _kept(self.optimizer).values():
            kept["step"].fill_(min(steps))
        for number, values in state["state"].items():
            for name in MOMENTS:
                moment = values[name].to(self.accelerator.device)
                safe_set_full_optimizer_state(self._weights[number], moment, name)

    def _groups(self) -> Iterator[dict[str, Any]]:
        """Return the options of each group, with the positions of its weights instead of DeepSpeed's flat buffers."""
        positions = iter(range(len(self._weights)))
        for group, count in zip(self.optimizer.param_groups, self._counts, strict=True):
            options = {name: value for name, value in group.items() if name not in ("params", "initial_lr")}
            yield {**options, "params": list(islice(positions, count))}

    def shard(self, tensors: Sequence[Tensor]) -> list[Any] | None:
        """Shard whole tensors as stage 3 shards the weights; None: weights are whole."""
        weights = list(self.network.parameters())
        if not any(hasattr(weight, "ds_id") for weight in weights):
            return None
        return [_Shard.of(tensor, weight) for tensor, weight in zip(tensors, weights, strict=True)]

    def local(self, tensors: Sequence[Any]) -> list[Tensor]:
        """Return this process' shards, flat and in float32, sharing their memory."""
        return [_local(tensor) for tensor in tensors]

    def unshard(self, shard: Any) -> Tensor:
        """Gather a whole tensor; all processes must call this."""
        return shard.full_tensor()


class _Shard:
    """A tensor sharded as DeepSpeed's stage 3 shards a weight: flat, padded with zeros, in equal parts."""

    def __init__(self, part: Tensor, weight: Any) -> None:
        self.part, self.weight = part, weight

    @classmethod
    def of(cls, whole: Tensor, weight: Any) -> _Shard:
        """Take this process' part of a whole tensor."""
        size, rank = weight.ds_tensor.numel(), torch.distributed.get_rank()
        flat = whole.detach().to(weight.ds_tensor.device).flatten()
        part = torch.zeros(size, dtype=whole.dtype, device=flat.device)
        held = flat[rank * size : (rank + 1) * size]
        part[: held.numel()] = held
        return cls(part, weight)

    def full_tensor(self) -> Tensor:
        """Gather the whole tensor; all processes must call this."""
        parts = [torch.empty_like(self.part) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, self.part.contiguous())
        return torch.cat(parts)[: self.weight.ds_numel].view(self.weight.ds_shape)


def _local(tensor: Any) -> Tensor:
    if isinstance(tensor, _Shard):
        return tensor.part
    if not hasattr(tensor, "ds_id"):
        return tensor
    from deepspeed.utils import safe_get_local_fp32_param

    return safe_get_local_fp32_param(tensor) if tensor.requires_grad else tensor.ds_tensor


def _whole(weight: Any) -> Tensor:
    return _Shard(_local(weight), weight).full_tensor() if hasattr(weight, "ds_id") else weight


def _start_moments(optimizer: Any) -> None:
    """Create the state of torch's optimizer before its first step, so that a saved state can be loaded into it.

    In stages 1 and 2 DeepSpeed looks for moments once, when its first group has stepped and the others have none.
    """
    zero = optimizer.optimizer
    flats = getattr(zero, "fp32_partitioned_groups_flat", None) or zero.single_partition_of_fp32_groups
    for flat in flats:
        step = torch.zeros((), dtype=torch.float32, device=flat.device)
        zero.optimizer.state[flat] = {"step": step, **{name: torch.zeros_like(flat) for name in MOMENTS}}
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._lazy_init_hp_params_optimizer_state()


def _kept(optimizer: Any) -> dict[Tensor, dict[str, Tensor]]:
    """Return the state of torch's optimizer inside accelerate's and DeepSpeed's, by flat buffers."""
    return optimizer.optimizer.optimizer.state


@torch.no_grad()
def _set_weight(weight: Any, whole: Tensor) -> None:
    """Set a weight or a buffer and, if it is trained, its float32 master copy."""
    import deepspeed
    from deepspeed.utils import safe_set_full_fp32_param

    with deepspeed.zero.GatheredParameters([weight], modifier_rank=0, enabled=hasattr(weight, "ds_id")):
        weight.data.copy_(whole)
    if hasattr(weight, "ds_id"):  # exactly, even if processes exchange weights in half precision
        weight.ds_tensor.copy_(_Shard.of(whole, weight).part)
    if weight.requires_grad:
        safe_set_full_fp32_param(weight, whole)
