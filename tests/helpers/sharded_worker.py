"""Train with sharded weights in two processes over gloo on the CPU.

accelerate shards weights only on GPUs, so its distributed type is set by hand after the processes are connected. All
else is accelerate, FSDP2 and DeepSpeed with the settings of `configs/accelerate/KIND.yaml`.
"""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from grey import Grey, assert_close, settings

from ldm.config.root import Config
from ldm.data.loader import BatchShare, TrainingData
from ldm.storage.store import load_json, load_tree, save_json, save_tree
from ldm.training import loop
from ldm.training.loop import start_accelerator
from ldm.training.runs.run import Run
from ldm.training.stages.stage import StartingPoint
from ldm.training.stages.unet import UNetStage

CONFIGURATIONS = Path(__file__).parents[2] / "configs" / "accelerate"
OPTIONS = ("cache_latents=false", "ema_others=[0.5]", "gradient_accumulation=2", "gradient_clip=0.5")
OPTIONS += ("learning_rates={text: 1.0e-4}", "freeze=[unet.conv_in.*]", "weight_decay=0.01")
STAGES = {"zero1": ("zero2", "1"), "zero2": ("zero2", "2"), "zero3": ("zero3", "3")}


# Train the small networks in bfloat16 also on CPUs without its instructions.
loop.computes_bfloat16 = lambda device: True


def asked(precision: str, *more: str) -> Config:
    options = (*OPTIONS, f"mixed_precision={precision}", *more)
    return settings("unet.dropout=0", *(f"training.unet.{option}" for option in options))


def make(vae: Path, precision: str = "no", *more: str) -> UNetStage:
    config = asked(precision, *more)
    accelerator = start_accelerator(config.training.unet, 0)
    return UNetStage.build(
        config, Grey(), accelerator, Run(vae.parent / "run", resume=True), StartingPoint(vae=str(vae))
    )


def steps(stage: UNetStage, first: int, last: int) -> torch.Tensor:
    """Losses and gradient norms of steps."""
    accelerator, found = stage.accelerator, []
    share = BatchShare(4, accelerator.process_index, accelerator.num_processes, 2)
    data = TrainingData(Grey(), asked("no").data, share, 0)
    for step in range(first, last + 1):
        stage.begin(step)
        losses = stage.train_step([data[step, 0], data[step, 1]], step).losses
        found.append(accelerator.reduce(torch.stack([losses["loss"], losses["gradient_norm"]]), "mean"))
    return torch.stack(found)


def state_of(stage: UNetStage, folder: Path | None = None) -> dict[str, Any]:
    """The state without its scaler; several processes read what the first one writes to `folder`."""
    with stage.averaged():
        state = {name: copy.deepcopy(part) for name, part in stage.state().items() if name != "scaler"}
    if folder is None:
        return state
    if stage.accelerator.is_main_process:
        save_tree(folder / "state-of", state)
    elif stage.accelerator.distributed_type == DistributedType.FSDP:
        assert not state["networks"]["unet"]  # the full state is held by the first process only
        assert not state["optimizers"]["unet"]
    stage.accelerator.wait_for_everyone()
    state = load_tree(folder / "state-of")
    stage.accelerator.wait_for_everyone()
    return state


def load(stage: UNetStage, state: dict[str, Any]) -> UNetStage:
    stage.load_state(copy.deepcopy({**state, "scaler": None}))  # an optimizer keeps the tensors it loads
    return stage


def environment(kind: str) -> dict[str, str]:
    """The variables that accelerate's launcher sets for a strategy's configuration."""
    file, stage = STAGES.get(kind, (kind, ""))
    words = ["--config_file", str(CONFIGURATIONS / f"{file}.yaml"), "--num_processes", "2", "-m", "ldm"]
    words = ["--zero_stage", stage, *words] if stage else words
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    arguments.deepspeed_fields_from_accelerate_config = ""
    return prepare_deepspeed_cmd_env(arguments)[1] if arguments.use_deepspeed else prepare_multi_gpu_env(arguments)


def begin(kind: str) -> None:
    """Let the next accelerator shard weights with a strategy."""
    AcceleratorState._reset_state(False)
    launched = {name: value for name, value in environment(kind).items() if name not in os.environ}
    os.environ |= {name: value for name, value in launched.items() if name.startswith(("ACCELERATE_", "FSDP_"))}
    os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] = STAGES.get(kind, ("", "0"))[1]
    PartialState(cpu=True)
    there = DistributedType.DEEPSPEED if kind in STAGES else DistributedType.MULTI_GPU
    PartialState._shared_state["distributed_type"] = there


def main(vae: Path, kinds: list[str]) -> None:
    folder = vae.parent
    expected = {name: torch.tensor(found) for name, found in load_json(folder / "expected.json").items()}
    for kind in kinds:
        begin(kind)
        if kind in STAGES:
            from deepspeed import comm

            comm.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
        first = make(vae)
        assert first.accelerator.distributed_type.value == ("DEEPSPEED" if kind in STAGES else "FSDP")
        assert_close(steps(first, 1, 4), expected["1-4"], 1e-5)
        state = state_of(first, folder)
        assert_close(state, load_tree(folder / "plain"), 1e-4)
        goes_on = steps(first, 5, 6)
        begin(kind)  # into sharded weights again, bit for bit
        again = load(make(vae), state)
        assert_close(state_of(again, folder), state, 0.0)
        assert torch.equal(steps(again, 5, 6), goes_on)
        begin(kind)  # from whole ones
        assert_close(steps(load(make(vae), load_tree(folder / "plain")), 5, 6), expected["5-6"], 1e-5)
        if again.accelerator.is_main_process:
            save_tree(folder / kind, state)
            save_json(folder / f"{kind}.json", {"5-6": goes_on.tolist()})
        begin(kind)  # with activations that are recomputed in the backward pass
        assert_close(steps(make(vae, "no", "gradient_checkpointing=true"), 1, 4), expected["1-4"], 1e-5)
        begin(kind)
        half = make(vae, "bf16")
        assert_close(steps(half, 1, 4), expected["bf16"], 2e-2)
        state = state_of(half, folder)
        begin(kind)
        assert_close(state_of(load(make(vae, "bf16"), state), folder), state, 0.0)
        if kind == "fsdp2":
            begin(kind)
            orthogonal = make(vae, "no", "optimizer=muon")
            assert_close(steps(orthogonal, 1, 4), expected["muon"], 1e-5)
            state = state_of(orthogonal, folder)
            goes_on = steps(orthogonal, 5, 6)
            begin(kind)
            assert torch.equal(steps(load(make(vae, "no", "optimizer=muon"), state), 5, 6), goes_on)
        (folder / f"{kind}-held-{again.accelerator.process_index}").touch()  # lines of two processes may mix
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
