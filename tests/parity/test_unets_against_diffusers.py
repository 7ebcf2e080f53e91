"""Random U-Nets of both of diffusers' classes: equal names, fields and numbers, in folders written by either side."""

from __future__ import annotations

import inspect
import random
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from ldm.models.denoiser import Added
from ldm.models.unet import condition_fields, plain_fields
from ldm.models.unet.config import UNetConfig
from ldm.models.unet.fields import unet_from_fields, unet_to_fields
from ldm.models.unet.unet import UNet
from ldm.storage.fields import EXTRA, load_fields
from ldm.storage.store import save_tensors

CLASSES = {"transformer": diffusers.UNet2DConditionModel, "plain": diffusers.UNet2DModel}


def draw_classes(draw: random.Random, kinds: list[str | None]) -> dict[str, Any]:
    kind = draw.choice(kinds)
    if kind == "table":
        return {"num_class_embeds": 5}
    width = {"projection_class_embeddings_input_dim": draw.choice([3, 6])} if "projection" in str(kind) else {}
    return {"class_embed_type": kind, **width}


def draw_common(draw: random.Random, levels: int) -> dict[str, Any]:
    return {
        "in_channels": draw.choice([3, 4, 9]),
        "out_channels": draw.choice([3, 4, 6]),
        "sample_size": 8,
        "block_out_channels": [draw.choice([8, 16, 24, 32]) for _ in range(levels)],
        "layers_per_block": draw.choice([1, 1, 2, 3]),
        "norm_num_groups": draw.choice([2, 4, 8]),
        "norm_eps": draw.choice([1e-5, 1e-6, 1e-3]),
        "time_scale_shift": draw.random() < 0.4,
        "downsample_padding": draw.choice([0, 1]),
        "flip_sin_to_cos": draw.random() < 0.5,
        "freq_shift": draw.choice([0.0, 1.0]),
    }


def random_condition_unet(seed: int) -> UNetConfig:
    draw = random.Random(seed)
    levels = draw.choice([1, 2, 2, 3, 4])
    layers = [draw.choice([0, 1, 2]) for _ in range(levels)]
    options = draw_common(draw, levels) | draw_classes(
        draw, [None, "table", "timestep", "identity", "projection", "simple_projection"]
    )
    if draw.random() < 0.4:
        sizes = 4 * options.get("projection_class_embeddings_input_dim", 2)
        text_time = {"addition_embed_type": "text_time", "addition_time_embed_dim": 2 * draw.randint(2, 4)}
        width = {"projection_class_embeddings_input_dim": sizes + 6 * text_time["addition_time_embed_dim"]}
        options |= text_time | width
    return UNetConfig(
        **options,
        attention_layers=layers,
        mid_attention_layers=None if layers[-1] else draw.choice([None, 1, 2]),
        num_attention_heads=draw.choice([1, 2, 4, [draw.choice([1, 2, 4, 8]) for _ in range(levels)]]),
        cross_attention_dim=draw.choice([12, 32]),
        use_linear_projection=draw.random() < 0.5,
        resnet_resampling=[count == 0 and draw.random() < 0.5 for count in layers],
    )


def random_plain_unet(seed: int) -> UNetConfig:
    draw = random.Random(seed)
    levels = draw.choice([1, 2, 2, 3, 4])
    layers = [draw.choice([0, 1]) for _ in range(levels)]
    options = draw_common(draw, levels) | draw_classes(draw, [None, "table", "timestep", "identity"])
    width = draw.choice([2, 4, 8, None])  # of a head
    attending_by_resnet = draw.random() < 0.5
    return UNetConfig(
        **options,
        attention="plain",
        attention_layers=layers,
        mid_attention_layers=draw.choice([None, 0, 1]),
        num_attention_heads=[channels // (width or channels) for channels in options["block_out_channels"]],
        cross_attention_dim=None,
        resnet_resampling=[attending_by_resnet if attends else draw.random() < 0.5 for attends in layers],
    )


def random_unet(kind: str, seed: int) -> UNetConfig:
    return random_condition_unet(seed) if kind == "transformer" else random_plain_unet(seed)


def randomise(network: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            spread = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
            weight.copy_(torch.randn(weight.shape, generator=generator) * spread + (weight.ndim == 1))


def random_classes(config: UNetConfig, generator: torch.Generator) -> Tensor | None:
    if config.num_class_embeds is not None or config.class_embed_type == "timestep":
        return torch.randint(config.num_class_embeds or 1000, (2,), generator=generator)
    if config.class_embed_type is None:
        return None
    width = config.projection_class_embeddings_input_dim
    if config.class_embed_type == "identity":
        width = 4 * config.block_out_channels[0]
    assert width is not None
    return torch.randn(2, width, generator=generator)


def run_both(ours: UNet, theirs: torch.nn.Module, sides: tuple[int, int]) -> tuple[Tensor, Tensor]:
    config = ours.config
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, config.in_channels, *sides, generator=generator)
    t, context, added = torch.tensor([7, 981]), None, None
    classes = random_classes(config, generator)
    asked: dict[str, Any] = {"class_labels": classes}
    if config.cross_attention_dim is not None:
        context = asked["encoder_hidden_states"] = torch.randn(2, 5, config.cross_attention_dim, generator=generator)
    if config.addition_time_embed_dim is not None:
        width = (config.projection_class_embeddings_input_dim or 0) - 6 * config.addition_time_embed_dim
        sizes = torch.tensor([[512, 768, 0, 32, 1024, 1024], [64, 48, 3, 0, 64, 64]])
        added = Added(torch.randn(2, width, generator=generator), sizes)
        asked["added_cond_kwargs"] = {"text_embeds": added.text, "time_ids": added.sizes}
    with torch.no_grad():
        return ours.eval()(latents, t, context, classes, added), theirs.eval()(latents, t, **asked).sample


def assert_close(made: Tensor, expected: Tensor) -> None:
    """Within 1e-5 of the largest value: float32 sums in another order."""
    assert made.shape == expected.shape
    assert (made - expected).abs().max() <= 1e-5 * expected.abs().max()


def load_theirs(kind: str, folder: Path) -> torch.nn.Module:
    theirs, found = CLASSES[kind].from_pretrained(folder, low_cpu_mem_usage=False, output_loading_info=True)
    assert not any(found.values()), found
    return theirs


def sides_for(config: UNetConfig, seed: int) -> tuple[int, int]:
    """Also sides that do not halve evenly, where diffusers can: with cross-attention and convolutions alone."""
    odd = config.attention == "transformer" and not any(config.resamples)
    return random.Random(seed).choice([(8, 8), (16, 8), (9, 15)] if odd else [(8, 8), (16, 8)])


QUICK = 12
SEEDS = [pytest.param(seed, marks=[] if seed < QUICK else pytest.mark.slow) for seed in range(28)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", CLASSES)
def test_random_unets_have_the_names_the_fields_and_the_numbers_of_diffusers(
    kind: str, seed: int, tmp_path: Path
) -> None:
    config = random_unet(kind, seed)
    ours = UNet(config)
    randomise(ours, seed)
    ours.save_pretrained(tmp_path / "ours")
    theirs = load_theirs(kind, tmp_path / "ours")
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    sides = sides_for(config, seed)
    assert_close(*run_both(ours, theirs, sides))

    randomise(theirs, seed + 1000)
    theirs.save_pretrained(tmp_path / "theirs")
    again = UNet.from_pretrained(tmp_path / "theirs")
    assert_close(*run_both(again, theirs, sides))
    assert unet_to_fields(again.config) | {EXTRA: None} == unet_to_fields(config) | {EXTRA: None}
    where = tmp_path / "ours" / "config.json"
    assert unet_from_fields(load_fields(where), where) == config


@pytest.mark.parametrize("kind", CLASSES)
def test_shards_and_half_precision_variants_of_either_side_are_read_by_the_other(kind: str, tmp_path: Path) -> None:
    config = random_unet(kind, 5)
    ours = UNet(config)
    randomise(ours, 0)
    ours.save_pretrained(tmp_path / "ours", shard_size=150_000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
    theirs = load_theirs(kind, tmp_path / "ours")
    assert_close(*run_both(ours, theirs, (8, 8)))
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="150KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    again = UNet.from_pretrained(tmp_path / "shards").state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in ours.state_dict().items())
    theirs.half().save_pretrained(tmp_path / "half", variant="fp16", max_shard_size="150KB")
    theirs.save_pretrained(tmp_path / "whole_half", variant="fp16")
    for folder in ("half", "whole_half"):
        assert all(".fp16" in path.name for path in (tmp_path / folder).glob("*.safetensors"))
        assert_close(*run_both(UNet.from_pretrained(tmp_path / folder), theirs.float(), (8, 8)))


def test_weights_with_the_attention_names_of_the_first_diffusers_are_read_by_both(tmp_path: Path) -> None:
    ours = UNet(random_plain_unet(1).model_copy(update={"mid_attention_layers": 1}))
    randomise(ours, 0)
    ours.save_pretrained(tmp_path)
    old = {}
    for name, weight in ours.state_dict().items():
        for new_part, old_part in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = re.sub(rf"(attentions\.\d+)\.{new_part}\.", rf"\1.{old_part}.", name)
        old[name] = weight
    assert "mid_block.attentions.0.proj_attn.bias" in old
    save_tensors(tmp_path / "diffusion_pytorch_model.safetensors", old)
    again = UNet.from_pretrained(tmp_path)
    assert all(torch.equal(weight, ours.state_dict()[name]) for name, weight in again.state_dict().items())
    assert_close(*run_both(again, load_theirs("plain", tmp_path), (8, 8)))


# Fields of published models, as their config.json has them, but for those that say what is the default anyway.
DDPM = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "mid_block_scale_factor": 1,
    "time_embedding_type": "positional",
}
STABLE_DIFFUSION = {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768, "sample_size": 64}
SDXL = {
    "_class_name": "UNet2DConditionModel",
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "num_class_embeds": None,
    "num_attention_heads": None,
    "only_cross_attention": False,
    "upcast_attention": None,
    "use_linear_projection": True,
    "sample_size": 128,
}
PUBLISHED: dict[str, tuple[dict[str, Any], int | None]] = {
    "google/ddpm-cifar10-32": (
        DDPM
        | {
            "sample_size": 32,
            "block_out_channels": [128, 256, 256, 256],
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        },
        35_746_307,
    ),
    "google/ddpm-cat-256": (
        DDPM
        | {
            "sample_size": 256,
            "block_out_channels": [128, 128, 256, 256, 512, 512],
            "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
        },
        113_673_219,
    ),
    "CompVis/ldm-celebahq-256": (
        {"_class_name": "UNet2DModel", "sample_size": 64, "attention_head_dim": 32},
        274_056_163,
    ),
    "CompVis/ldm-text2im-large-256": (STABLE_DIFFUSION | {"cross_attention_dim": 1280, "sample_size": 32}, 872_300_484),
    "stable-diffusion-v1-5": (STABLE_DIFFUSION, 859_520_964),
    "stable-diffusion-2-1": (
        STABLE_DIFFUSION
        | {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True},
        865_910_724,
    ),
    "stable-diffusion-xl-base-1.0": (
        SDXL
        | {
            "attention_head_dim": [5, 10, 20],
            "block_out_channels": [320, 640, 1280],
            "cross_attention_dim": 2048,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "projection_class_embeddings_input_dim": 2816,
            "transformer_layers_per_block": [1, 2, 10],
        },
        2_567_463_684,
    ),
    "stable-diffusion-xl-refiner-1.0": (
        SDXL
        | {
            "attention_head_dim": [6, 12, 24, 24],
            "block_out_channels": [384, 768, 1536, 1536],
            "cross_attention_dim": 1280,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "projection_class_embeddings_input_dim": 2560,
            "transformer_layers_per_block": 4,
        },
        None,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_fields_lead_to_the_same_weights_on_both_sides(name: str) -> None:
    fields, parameters = PUBLISHED[name]
    config = unet_from_fields(fields, Path("config.json"))
    with torch.device("meta"):
        ours = {name: weight.shape for name, weight in UNet(config).state_dict().items()}
        theirs = getattr(diffusers, fields["_class_name"]).from_config(fields)
    assert ours == {name: weight.shape for name, weight in theirs.state_dict().items()}
    assert parameters in (None, sum(shape.numel() for shape in ours.values()))
    written = unet_to_fields(config)
    for field, value in theirs.config.items():  # what is absent has the default of their class
        if field in written and not field.startswith("_"):
            again = list(value) if isinstance(value, tuple) else value
            assert written[field] == again or field in ("attention_head_dim", "transformer_layers_per_block"), field
    assert unet_from_fields(written, Path("config.json")) == config


@pytest.mark.parametrize("module", [condition_fields, plain_fields])
def test_every_field_of_diffusers_is_known_and_has_its_default(module: Any) -> None:
    theirs = inspect.signature(getattr(diffusers, module.NAME).__init__).parameters
    assert theirs.keys() - {"self"} == module.DEFAULTS.keys() | module.FIXED.keys()
    for name, value in module.DEFAULTS.items():
        default = theirs[name].default
        assert value == (list(default) if isinstance(default, tuple) else default), name
    for name, values in module.FIXED.items():
        assert theirs[name].default in values, name


def test_residuals_of_a_controlnet_are_added_as_by_diffusers(tmp_path: Path) -> None:
    config = UNetConfig(
        block_out_channels=(8, 16), attention_layers=(0, 1), num_attention_heads=2, cross_attention_dim=12,
        norm_num_groups=4,
    )  # fmt: skip
    ours, generator = UNet(config), torch.Generator().manual_seed(3)
    randomise(ours, 5)
    ours.save_pretrained(tmp_path)
    theirs = load_theirs("transformer", tmp_path)
    x, t, context = (torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([5, 700]),
                     torch.randn(2, 3, 12, generator=generator))  # fmt: skip
    shapes = [(8, 8)] * 3 + [(8, 4)] + [(16, 4)] * 3
    *down, mid = (torch.randn(2, width, side, side, generator=generator) for width, side in shapes)
    with torch.no_grad():
        made = ours.denoise(x, ours.embed_time(t), ours.project_context(context), [*down, mid])
        expected = theirs(
            x, t, context, down_block_additional_residuals=tuple(down), mid_block_additional_residual=mid
        ).sample
    assert_close(made, expected)
