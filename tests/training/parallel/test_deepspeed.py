"""DeepSpeed's configuration; `test_scaling` compares its training with that of other strategies."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sharded_worker import STAGES, environment

from ldm.config.training import UNetStageConfig
from ldm.errors import UserError
from ldm.training.parallel import deepspeed


def configured(stage: int, section: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    """DeepSpeed's configuration for two processes, from accelerate's with a section more."""
    given = {"train_batch_size": "auto", "gradient_clipping": "auto", "gradient_accumulation_steps": "auto"}
    given |= {"zero_optimization": {"stage": stage}, "fp16": {"enabled": False}, **(section or {})}
    plugin = SimpleNamespace(zero_stage=stage, deepspeed_config=given)
    accelerator: Any = SimpleNamespace(num_processes=2, state=SimpleNamespace(deepspeed_plugin=plugin))
    deepspeed.configure(accelerator, UNetStageConfig(**settings))
    return given


def test_batch_accumulation_clipping_and_precision_are_those_of_the_stage() -> None:
    config = configured(2, batch_size=48, gradient_accumulation=3, gradient_clip=0.5, mixed_precision="bf16")
    assert config["train_micro_batch_size_per_gpu"] == 8
    assert config["gradient_accumulation_steps"] == 1  # the loop accumulates gradients and marks the last micro-batch
    assert config["gradient_clipping"] == 0.5
    assert config["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    config = configured(1, gradient_clip=None)
    assert config["gradient_clipping"] == 0.0
    assert "torch_autocast" not in config


@pytest.mark.parametrize(
    ("stage", "section", "settings", "said"),
    [
        (0, {}, {}, "zero_stage 0 shards nothing"),
        (2, {"optimizer": {"type": "Adam"}}, {}, "sets 'optimizer', which training.STAGE sets"),
        (2, {"bf16": {"enabled": True}}, {}, "sets 'bf16', which training.STAGE sets"),
        (
            3,
            {"zero_optimization": {"offload_param": {"device": "cpu"}}},
            {},
            "offload_param (cpu) is not supported",
        ),
        (2, {}, {"mixed_precision": "fp16"}, "fp16 is not supported with DeepSpeed: use bf16"),
        (2, {}, {"optimizer": "adamw8bit"}, "supports optimizer adamw only, not adamw8bit"),
        (2, {}, {"optimizer": "muon"}, "supports optimizer adamw only, not muon"),
        (2, {}, {"channels_last": True}, "set channels_last=false"),
        (3, {}, {"compile": True}, "set compile=false, or use stage 2"),
    ],
)
def test_what_the_two_cannot_do_together_is_one_line(
    stage: int, section: dict[str, Any], settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as error:
        configured(stage, section, **settings)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_deepspeed_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED", raising=False)
    assert not deepspeed.is_requested()
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(deepspeed.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'not installed: pip install "ldm-diffusion\[deepspeed\]"'):
        deepspeed.is_requested()


@pytest.mark.parametrize("kind", ["fsdp2", *STAGES])
def test_accelerate_reads_the_shipped_configurations(kind: str, tmp_path: Path) -> None:
    variables = environment(kind)
    assert variables["ACCELERATE_MIXED_PRECISION"] == "no"
    if kind == "fsdp2":
        assert (variables["FSDP_VERSION"], variables["FSDP_TRANSFORMER_CLS_TO_WRAP"]) == ("2", "Conv2d,FeedForward")
    else:
        assert variables["ACCELERATE_USE_DEEPSPEED"] == "true"
        assert variables["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == kind[-1]
        assert variables["ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"] == "none"
