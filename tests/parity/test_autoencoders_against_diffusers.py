"""Autoencoders against diffusers' AutoencoderKL and VQModel: equal names, fields and outputs in both directions."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.autoencoder.fields import autoencoder_from_fields, autoencoder_to_fields, diffusers_classes
from ldm.models.autoencoder.vq import VQConfig
from ldm.registry import BOTTLENECKS
from ldm.storage.store import load_tensors, save_tensors

HERE = Path("config.json")
COUNTS = json.loads((Path(__file__).parent / "autoencoder_param_counts.json").read_text())
KINDS = [pytest.param((kind, seed), id=f"{kind}-{seed}") for kind in ("kl", "vq") for seed in range(20)]
SIDES = 16, 24


def random_config(kind: str, seed: int) -> AutoencoderConfig:
    """A small autoencoder with statistics such as training measures, or not measured yet."""
    draw = random.Random(f"{kind}{seed}")
    levels, latent = draw.randint(1, 4), draw.choice([1, 3, 4, 8])
    scaling, shift = draw.choice([(None, None), (draw.uniform(0.2, 3), None), (draw.uniform(0.2, 3), draw.gauss(0, 1))])
    one_a_channel = kind == "kl" and draw.random() < 0.3
    if one_a_channel:
        scaling = tuple(draw.uniform(0.2, 3) for _ in range(latent))
        shift = tuple(draw.gauss(0, 1) for _ in range(latent))
    return BOTTLENECKS[kind].section(
        in_channels=draw.choice([1, 3]),
        out_channels=draw.choice([1, 3]),
        latent_channels=latent,
        **({"z_channels": draw.choice([None, 2, 6]), "codebook_size": draw.choice([1, 7, 50])} if kind == "vq" else {}),
        block_out_channels=tuple(draw.choice([8, 16, 24]) for _ in range(levels)),
        layers_per_block=draw.randint(1, 3),
        attention_levels=tuple(level for level in range(levels) if draw.random() < 0.4),
        mid_block_attention=draw.random() < 0.6,
        norm_num_groups=draw.choice([2, 4, 8]),
        force_upcast=draw.random() < 0.5,
        sample_size=32,
        scaling_factor=scaling,
        shift_factor=shift,
        statistics="channel" if one_a_channel else "tensor",
    )


def random_arguments(kind: str, seed: int) -> dict[str, Any]:
    """Arguments of diffusers' class, some left to their defaults."""
    draw = random.Random(f"{seed}{kind}")
    attends = [draw.random() < 0.5 for _ in range(draw.randint(1, 4))]
    arguments = {
        "in_channels": draw.choice([1, 3]),
        "out_channels": draw.choice([1, 3]),
        "latent_channels": draw.choice([2, 5]),
        "layers_per_block": draw.randint(1, 2),
        "act_fn": draw.choice(["silu", "swish"]),
        "mid_block_add_attention": draw.random() < 0.5,
        "sample_size": draw.choice([32, (64, 64)]),
        "scaling_factor": draw.uniform(0.2, 3),
        "force_upcast": draw.random() < 0.5,
    }
    if kind == "kl":
        arguments |= {"shift_factor": draw.uniform(-1, 1)}
    else:
        arguments |= {"vq_embed_dim": draw.choice([3, 5]), "num_vq_embeddings": draw.choice([20, 60])}
    return {name: value for name, value in arguments.items() if draw.random() < 0.7} | {
        "block_out_channels": tuple(draw.choice([8, 16]) for _ in attends),
        "down_block_types": tuple("AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends),
        "up_block_types": tuple("AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attends)),
        "norm_num_groups": draw.choice([2, 8]),
    }


def theirs_of(kind: str) -> Any:
    return getattr(diffusers, BOTTLENECKS[kind].diffusers_class)


def randomise(network: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            spread = 1.0 if "embedding" in name else weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
            weight.copy_(torch.randn(weight.shape, generator=generator) * spread + (weight.ndim == 1))


def assert_close(made: Tensor, expected: Tensor) -> None:
    """Within 1e-5 of the largest value."""
    assert made.shape == expected.shape
    assert (made - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.no_grad()
def assert_same_numbers(ours: Autoencoder, theirs: Any) -> None:
    """The same latents as theirs times scaling_factor, or less shift_factor, and the same images from them.

    Ours are in float32, theirs in float64: in float32 theirs is up to 1e-5 off itself.
    """
    theirs = theirs.double()
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(2, ours.config.in_channels, *SIDES, generator=generator) * 2 - 1
    factor, shift = theirs.config.scaling_factor, theirs.config.get("shift_factor") or 0.0
    latents = ours.eval().encode(images).mode()
    found = theirs.eval().encode(images.double())
    z = found.latents if ours.config.kind == "vq" else found.latent_dist.mean
    assert_close(latents, (z - shift) * factor)
    if ours.config.kind == "vq":  # near codebook vectors, so that no rounding decides between two
        indices = torch.randint(ours.config.codebook_size, (2, 4, 6), generator=generator)
        exact = ours.lookup(indices)
        latents = exact + 1e-4 * torch.randn(exact.shape, generator=generator)
        assert torch.equal(ours.indices(latents), indices)
    assert_close(ours.decode(latents), theirs.decode(latents.double() / factor + shift).sample)


@pytest.mark.parametrize("case", KINDS)
def test_diffusers_loads_what_ldm_saves(case: tuple[str, int], tmp_path: Path) -> None:
    ours = Autoencoder(random_config(*case))
    randomise(ours, case[1])
    ours.save_pretrained(tmp_path)
    theirs, found = theirs_of(case[0]).from_pretrained(tmp_path, low_cpu_mem_usage=False, output_loading_info=True)
    assert not any(found.values()), found
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    assert_same_numbers(ours, theirs)
    again = Autoencoder.from_pretrained(tmp_path)
    statistics = {"scaling_factor", "shift_factor"}
    assert again.config.model_dump(exclude=statistics) == ours.config.model_dump(exclude=statistics)
    assert (again.config.scaling_factor is None) is (ours.config.scaling_factor is None)
    assert_same_numbers(again, theirs)


@pytest.mark.parametrize("case", KINDS)
def test_ldm_loads_what_diffusers_saves(case: tuple[str, int], tmp_path: Path) -> None:
    theirs = theirs_of(case[0])(**random_arguments(*case))
    randomise(theirs, case[1])
    theirs.save_pretrained(tmp_path)
    ours = Autoencoder.from_pretrained(tmp_path)
    assert ours.config.force_upcast is theirs.config.force_upcast
    loaded = ours.state_dict()
    assert all(torch.equal(weight, loaded[name]) for name, weight in theirs.state_dict().items())
    assert_same_numbers(ours, theirs)
    written = theirs_of(case[0]).from_config(autoencoder_to_fields(ours.config))
    assert autoencoder_from_fields(dict(written.config), HERE) == ours.config.model_copy(update={"shift_factor": None})


@torch.no_grad()
def test_the_nearest_of_many_codebook_vectors_equals_diffusers() -> None:
    config = VQConfig(
        codebook_size=3000, latent_channels=4, block_out_channels=(8,), norm_num_groups=2, scaling_factor=0.3
    )
    ours, theirs = Autoencoder(config).double(), diffusers.VQModel.from_config(autoencoder_to_fields(config)).double()
    randomise(ours, 0)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    latents = torch.randn(2, 4, 40, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    quantised, _, (_, _, indices) = theirs.quantize(latents / 0.3)
    assert indices.unique().numel() > 500
    assert torch.equal(ours.indices(latents).flatten(), indices)
    torch.testing.assert_close(ours.quantize(latents / 0.3), quantised, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.lookup(ours.indices(latents)), quantised * 0.3, rtol=0, atol=1e-12)


PUBLISHED: dict[str, dict[str, Any]] = {
    "kl-f4": {"latent_channels": 3, "block_out_channels": (128, 256, 512)},
    "kl-f8": {"latent_channels": 4, "block_out_channels": (128, 256, 512, 512)},
    "kl-f16": {"latent_channels": 16, "block_out_channels": (128, 128, 256, 256, 512), "attention_levels": (4,)},
    "kl-f32": {"latent_channels": 64, "block_out_channels": (128, 128, 256, 256, 512, 512), "attention_levels": (4, 5)},
    "vq-f4": {"latent_channels": 3, "block_out_channels": (128, 256, 512), "codebook_size": 8192},
    "vq-f8": {
        "latent_channels": 4,
        "block_out_channels": (128, 256, 256, 512),
        "attention_levels": (3,),
        "codebook_size": 16384,
    },
    "vq-f16": {
        "latent_channels": 8,
        "block_out_channels": (128, 128, 256, 256, 512),
        "attention_levels": (4,),
        "codebook_size": 16384,
    },
}
PUBLISHED["vq-f4-noattn"] = PUBLISHED["vq-f4"] | {"mid_block_attention": False}
PUBLISHED["vq-f8-n256"] = PUBLISHED["vq-f8"] | {"codebook_size": 256}


@pytest.mark.parametrize("name", COUNTS)
def test_published_autoencoders_have_the_published_parameters_and_names(name: str) -> None:
    config = BOTTLENECKS[name[:2]].section(**PUBLISHED[name])
    with torch.device("meta"):
        ours, theirs = Autoencoder(config), theirs_of(name[:2]).from_config(autoencoder_to_fields(config))
    assert sum(weight.numel() for weight in ours.parameters()) == COUNTS[name]
    shapes = [{key: weight.shape for key, weight in network.state_dict().items()} for network in (ours, theirs)]
    assert shapes[0] == shapes[1]


def fields_of(kind: str, **changes: Any) -> dict[str, Any]:
    config = BOTTLENECKS[kind].section(**({"codebook_size": 9} if kind == "vq" else {}), scaling_factor=1.0)
    return autoencoder_to_fields(config) | changes


REFUSED: list[tuple[str, str, Any]] = [
    ("kl", "act_fn", "relu"),
    ("kl", "vq_embed_dim", 3),
    ("kl", "num_vq_embeddings", 256),
    ("kl", "norm_type", "group"),
    ("vq", "norm_type", "spatial"),
    ("vq", "lookup_from_codebook", True),
    ("vq", "act_fn", "mish"),
    ("vq", "shift_factor", 0.5),
    ("vq", "use_quant_conv", True),
    ("vq", "num_vq_embeddings", 0),
    ("vq", "latent_channels", 0),
    ("vq", "down_block_types", ["DownEncoderBlock2D"] * 3),
    ("vq", "down_block_types", ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"]),
    ("kl", "up_block_types", ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 3),
    ("kl", "up_block_types", ["UpDecoderBlock2D"] * 3 + ["UpBlock2D"]),
    ("kl", "block_out_channels", []),
    ("kl", "sample_size", [32, 64]),
    ("kl", "scaling_factor", "large"),
    ("vq", "scaling_factor", [1.0, 2.0, 3.0, 4.0]),
    ("vq", "a_field_of_tomorrow", 1),
]


@pytest.mark.parametrize(("kind", "field", "value"), REFUSED)
def test_the_error_for_an_unsupported_field_names_it(kind: str, field: str, value: Any) -> None:
    assert autoencoder_from_fields(fields_of(kind), HERE).kind == kind
    with pytest.raises(UserError) as raised:
        autoencoder_from_fields(fields_of(kind, **{field: value}), HERE)
    assert str(HERE) in str(raised.value)
    assert "\n" not in str(raised.value)
    names = {"num_vq_embeddings": "codebook_size", "latent_channels": "z_channels", "block_out_channels": "block_types"}
    assert field in str(raised.value) or names[field] in str(raised.value)


def test_every_argument_of_diffusers_constructors_is_known_with_its_default() -> None:
    import inspect

    for name, kind in diffusers_classes().items():
        arguments = inspect.signature(getattr(diffusers, name).__init__).parameters
        defaults, fixed = BOTTLENECKS[kind].diffusers_defaults, BOTTLENECKS[kind].diffusers_fixed
        assert defaults.keys() | fixed.keys() == arguments.keys() - {"self"}
        for argument, default in defaults.items():
            theirs = arguments[argument].default
            assert default == (list(theirs) if isinstance(theirs, tuple) else theirs), argument


def test_the_error_for_another_class_names_it() -> None:
    with pytest.raises(UserError, match="is of a AsymmetricAutoencoderKL; ldm loads AutoencoderKL, VQModel"):
        autoencoder_from_fields(fields_of("kl", _class_name="AsymmetricAutoencoderKL"), HERE)


def test_saving_a_decoder_wider_than_its_latents_raises_an_error_and_writes_nothing(tmp_path: Path) -> None:
    wide = AutoencoderConfig(latent_channels=3, z_channels=6, block_out_channels=(8,), norm_num_groups=2)
    with pytest.raises(UserError, match="z_channels is 6 but latent_channels is 3"):
        Autoencoder(wide).save_pretrained(tmp_path / "vae")
    assert not (tmp_path / "vae").exists()


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_weights_with_diffusers_old_attention_names_load(kind: str, tmp_path: Path) -> None:
    config = random_config(kind, 0).model_copy(update={"attention_levels": (0,), "mid_block_attention": True})
    ours = Autoencoder(config)
    ours.save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    old = {}
    for name, tensor in load_tensors(weights).items():
        for new_part, old_part in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f".{new_part}.", f".{old_part}.")
        old[name] = tensor.clone()
    assert {"encoder.down_blocks.0.attentions.0.query.weight", "decoder.mid_block.attentions.0.proj_attn.bias"} <= {
        *old
    }
    save_tensors(weights, old)
    again = Autoencoder.from_pretrained(tmp_path).state_dict()
    assert again.keys() == ours.state_dict().keys()


@pytest.mark.parametrize(("force_upcast", "loaded"), [(True, torch.float32), (False, torch.float16)])
def test_an_autoencoder_that_overflows_in_float16_is_loaded_as_float32(
    force_upcast: bool, loaded: torch.dtype, tmp_path: Path
) -> None:
    config = AutoencoderConfig(block_out_channels=(8,), norm_num_groups=2, force_upcast=force_upcast)
    Autoencoder(config).save_pretrained(tmp_path)
    assert Autoencoder.from_pretrained(tmp_path, torch.float16).dtype == loaded
    assert Autoencoder.from_pretrained(tmp_path, torch.bfloat16).dtype == torch.bfloat16
