"""DeepSpeed's ZeRO (Rajbhandari et al. 2020), started by accelerate's own configuration.

Stage 1 divides the moments among processes, stage 2 gradients as well, stage 3 weights as well. Its own saves are
pickles and belong to a number of processes; here whole tensors are asked for, one after another, and set again, so that
a state is the one of `ShardingStrategy`: any other way of training goes on with it.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn

from ldm.config.training import StageConfig
from ldm.errors import UserError, install_extra
from ldm.training.parallel.sharding import divided, undivided
from ldm.training.parallel.strategy import ShardingStrategy

MOMENTS = ("exp_avg", "exp_avg_sq")
OURS = ("optimizer", "scheduler", "fp16", "bf16", "amp")  # sections that would decide what ldm's configuration does


def is_asked_for() -> bool:
    """Whether accelerate was told to train with DeepSpeed; UserError where that is not installed."""
    asked = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    if asked and importlib.util.find_spec("deepspeed") is None:
        command = install_extra("deepspeed")
        raise UserError(f"ACCELERATE_USE_DEEPSPEED is true but DeepSpeed is not installed: {command}")
    return asked


def is_deepspeed(accelerator: Accelerator) -> bool:
    """Whether accelerate trains with DeepSpeed."""
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def configure(accelerator: Accelerator, settings: StageConfig) -> None:
    """Put what a stage's configuration says into DeepSpeed's; UserError for what the two cannot do together.

    Weights and moments stay in float32, and bf16 is what is computed in, as it is without DeepSpeed.
    """
    plugin = accelerator.state.deepspeed_plugin
    config = plugin.deepspeed_config
    _check(config, plugin.zero_stage, settings)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    config["train_micro_batch_size_per_gpu"] = max(
        settings.batch_size // (accelerator.num_processes * settings.gradient_accumulation), 1
    )
    config["train_batch_size"] = "auto"
    config["gradient_accumulation_steps"] = 1  # the loop divides the loss, and says which micro-batch is the last
    config["gradient_clipping"] = settings.gradient_clip or 0.0
    if settings.mixed_precision == "bf16":
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    if plugin.zero_stage == 3:
        from transformers.integrations import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()  # encoders that are not trained are loaded whole


def _check(config: Mapping[str, Any], stage: int, settings: StageConfig) -> None:
    if stage not in (1, 2, 3):
        raise UserError(f"DeepSpeed with zero_stage {stage} divides nothing: use 1, 2 or 3, or configs/accelerate/ddp")
    for name in OURS:
        section = config.get(name)
        if section is not None and (
            not isinstance(section, dict) or section.get("enabled", True) not in (False, "auto")
        ):
            raise UserError(f"the configuration of DeepSpeed has {name!r}, which training.STAGE decides: take it out")
    for name in ("offload_optimizer", "offload_param"):
        device = (config["zero_optimization"].get(name) or {}).get("device", "none")
        if device not in ("none", None):
            raise UserError(f"ldm does not train with DeepSpeed's {name} ({device}): set it to none")
    if settings.mixed_precision == "fp16":
        raise UserError("mixed_precision fp16 is not trained with DeepSpeed: use bf16 or no, or DDP or FSDP2")
    if settings.optimizer != "adamw":
        raise UserError(f"DeepSpeed divides the moments of adamw alone: set optimizer=adamw, not {settings.optimizer}")
    if settings.channels_last:
        raise UserError("DeepSpeed keeps weights in flat rows: set channels_last=false")
    if settings.compile and stage == 3:
        raise UserError("compile is not tried with DeepSpeed's stage 3: set compile=false, or use stage 2")


class DeepSpeedStrategy(ShardingStrategy):
    """A network in DeepSpeed's engine, and its AdamW; there is one of them in a process."""

    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__(accelerator)
        self._weights: list[nn.Parameter] = []  # that are trained, in the order of the optimiser's groups
        self._counts: list[int] = []  # of weights in each group

    def prepare(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """Hand both to accelerate and DeepSpeed; the optimiser has moments, zeros, from the start on."""
        assert not self._weights, "DeepSpeed trains one network"
        if "torch_autocast" in self.accelerator.state.deepspeed_plugin.deepspeed_config:
            network.forward = convert_outputs_to_fp32(network.forward)
        groups = [list(group["params"]) for group in optimizer.param_groups]
        self._weights, self._counts = [weight for group in groups for weight in group], [len(group) for group in groups]
        engine, wrapped = self.accelerator.prepare(network, optimizer)
        _start_moments(wrapped)
        return engine, wrapped

    def micro_batch(self, network: Any, last: bool) -> AbstractContextManager[None]:
        """Tell the engine whether a step follows."""
        network.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, network: Any, loss: Tensor) -> None:
        """Add the gradients of a loss () to those of the network."""
        network.backward(loss)

    def step(self, network: Any, optimizer: Any, clip: float | None) -> Tensor:
        """Let the engine clip, which `configure` told it, step and clear; the norm () before clipping."""
        network.step()
        norm = torch.as_tensor(network.get_global_grad_norm(), device=self.accelerator.device, dtype=torch.float32)
        return norm.masked_fill(norm < 0, torch.nan).detach()  # DeepSpeed's sign of a norm that is not finite

    def network_state(self, network: nn.Module) -> dict[str, Tensor]:
        """The whole `state_dict()`, on the CPU; every process must come here."""
        own = self.accelerator.unwrap_model(network).state_dict(keep_vars=True)
        return {name: undivided(weight).detach().cpu() for name, weight in own.items()}

    def load_network_state(self, network: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Take over a whole `state_dict()`; RuntimeError where it is another network's."""
        own = self.accelerator.unwrap_model(network).state_dict(keep_vars=True)
        shapes = {name: tuple(getattr(weight, "ds_shape", weight.shape)) for name, weight in own.items()}
        for name in sorted({*shapes, *state}):
            if name not in state or shapes.get(name) != tuple(state[name].shape):
                raise RuntimeError(f"{name} is missing on one side or has another shape")
        for name, weight in own.items():
            _set_weight(weight, state[name].to(self.accelerator.device))

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """What torch's `state_dict()` would be, whole and without base rates; every process must come here."""
        from deepspeed.utils import safe_get_full_optimizer_state

        step = torch.tensor(max(float(kept["step"]) for kept in _kept(optimizer).values()))
        moments = {
            number: {name: safe_get_full_optimizer_state(weight, name).cpu() for name in MOMENTS}
            for number, weight in enumerate(self._weights)
        }
        state = {number: {"step": step.clone(), **values} for number, values in moments.items()}
        return {"state": state, "param_groups": list(self._groups(optimizer))}

    def load_optimizer_state(self, optimizer: Any, state: dict[str, Any]) -> None:
        """Take over the moments of a whole `state_dict()`; rates, betas and weight decay stay as they were made."""
        from deepspeed.utils import safe_set_full_optimizer_state

        if [len(group["params"]) for group in state["param_groups"]] != self._counts:
            raise ValueError("its weights are in other groups of learning rates")
        steps = {int(values["step"]) for values in state["state"].values()} or {0}
        if len(steps) > 1:
            raise ValueError("its weights were trained for different numbers of steps, those of DeepSpeed have one")
        for kept in _kept(optimizer).values():
            kept["step"].fill_(steps.copy().pop())
        for number, values in state["state"].items():
            for name in MOMENTS:
                moment = values[name].to(self.accelerator.device)
                safe_set_full_optimizer_state(self._weights[number], moment, name)

    def _groups(self, optimizer: Any) -> Iterator[dict[str, Any]]:
        """The options of each group, with the positions of its weights in place of DeepSpeed's flat ones."""
        positions = iter(range(len(self._weights)))
        for group, count in zip(optimizer.param_groups, self._counts, strict=True):
            options = {name: value for name, value in group.items() if name not in ("params", "initial_lr")}
            yield {**options, "params": list(islice(positions, count))}


def _start_moments(optimizer: Any) -> None:
    """Give torch's optimiser its first state now, not in its first step, so that one may be loaded before.

    In stages 1 and 2 DeepSpeed looks for moments just once, when its first group has stepped and those of the others
    are not there yet; without this, only the first group's could be asked for.
    """
    zero = optimizer.optimizer
    flats = getattr(zero, "fp32_partitioned_groups_flat", None) or zero.single_partition_of_fp32_groups
    for flat in flats:
        step = torch.zeros((), dtype=torch.float32, device=flat.device)
        zero.optimizer.state[flat] = {"step": step, **{name: torch.zeros_like(flat) for name in MOMENTS}}
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._lazy_init_hp_params_optimizer_state()


def _kept(optimizer: Any) -> dict[Tensor, dict[str, Tensor]]:
    """The state of torch's own optimiser inside of accelerate's and DeepSpeed's, by flat tensors."""
    return optimizer.optimizer.optimizer.state


@torch.no_grad()
def _set_weight(weight: Any, whole: Tensor) -> None:
    """Put values into a weight or a buffer and, where it is trained, into the copy that is stepped."""
    import deepspeed
    from deepspeed.utils import safe_set_full_fp32_param

    with deepspeed.zero.GatheredParameters([weight], modifier_rank=0, enabled=hasattr(weight, "ds_id")):
        weight.data.copy_(whole)
    if hasattr(weight, "ds_id"):  # exactly, where processes exchange weights in half precision
        weight.ds_tensor.copy_(divided(whole, weight).to_local())
    if weight.requires_grad:
        safe_set_full_fp32_param(weight, whole)
