"""What `test_sharded_weights...` runs in each of two processes, which share the weights of a U-Net between them."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from test_scaling import Grey, assert_close, settings
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from ldm import build
from ldm.data.loader import Share, TrainingData
from ldm.models.attention import FeedForward
from ldm.training.run import Run
from ldm.training.unet import UNetStage


def shard(accelerator: Accelerator, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
    """As accelerate does with `configs/accelerate/fsdp2.yaml`: layers of its classes, then the rest as one."""
    mesh = init_device_mesh("cpu", (2,))
    old = {weight: name for name, weight in network.named_parameters()}
    for module in network.modules():
        if isinstance(module, nn.Conv2d | FeedForward):
            fully_shard(module, mesh=mesh)
    fully_shard(network, mesh=mesh)
    new = dict(network.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [new[old[weight]] for weight in group["params"]]
    return network, optimizer


def make(measured: Path, sharded: bool) -> UNetStage:
    torch.manual_seed(0)
    accelerator, run = Accelerator(cpu=True), Run(measured.parent / "run", resume=True)
    asked = settings("training.unet.cache_latents=false", "training.unet.ema_others=[0.5]")
    arguments = (asked, Grey(), accelerator, run, str(measured), None)
    if not sharded:
        return build.unet_stage(*arguments)
    with patch.object(Accelerator, "prepare", shard):
        return build.unet_stage(*arguments)


def steps(stage: UNetStage, first: int, last: int) -> list[float]:
    accelerator = stage.accelerator
    data = TrainingData(Grey(), settings().data, Share(4, accelerator.process_index, 2), 0)
    found = []
    for step in range(first, last + 1):
        stage.begin(step)
        loss = stage.losses([data[step, 0]], step)["loss"]
        found.append(accelerator.reduce(loss, "mean").item())
    return found


def whole_state(stage: UNetStage) -> dict[str, Any]:
    with stage.averaged():
        return {name: value for name, value in stage.state().items() if name != "scaler"}


def main(measured: Path) -> None:
    whole, sharded = make(measured, sharded=False), make(measured, sharded=True)
    assert all(isinstance(weight, DTensor) for weight in sharded.networks["unet"].parameters())
    expected, found = steps(whole, 1, 4), steps(sharded, 1, 4)
    assert all(abs(a - b) < 1e-5 * abs(a) for a, b in zip(expected, found, strict=True)), (expected, found)
    state = whole_state(sharded)
    assert_close(state["networks"], whole_state(whole)["networks"], 1e-4)
    assert_close(state["ema"], whole_state(whole)["ema"], 1e-4)
    # Into sharded weights again, bit by bit; and into whole ones.
    again, unsharded = make(measured, sharded=True), make(measured, sharded=False)
    for stage in (again, unsharded):
        stage.load_state(copy.deepcopy({**state, "scaler": None}))  # an optimiser keeps what it is given
        assert_close(whole_state(stage), state, 0.0)
    goes_on = steps(sharded, 5, 7)
    assert steps(again, 5, 7) == goes_on
    assert all(abs(a - b) < 1e-5 * abs(a) for a, b in zip(steps(unsharded, 5, 7), goes_on, strict=True))
    print("all held", flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
