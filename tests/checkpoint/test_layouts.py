"""Which class of pipeline each kind of pipeline is written as; an unsupported `model_index.json` is an error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines as tiny
import torch
from torch import nn

from ldm.checkpoint.diffusers.layouts import LAYOUTS, pipeline_class, read_index
from ldm.checkpoint.diffusers.pipeline import load_pipeline, save_pipeline
from ldm.checkpoint.find import find_autoencoder
from ldm.checkpoint.pipeline import Pipeline
from ldm.conditioning.classes import ClassEmbedder, ClassesConfig, ClassTokens
from ldm.conditioning.text.conditioning import TextConditioning
from ldm.config.diffusion import DiffusionConfig, schedule_config
from ldm.errors import UserError

KINDS: dict[str, Callable[[], Pipeline]] = {
    "sd 1": tiny.sd_1,
    "sdxl": tiny.sdxl,
    "ldm": tiny.ldm_text,
    "unconditional": tiny.unconditional,
    "classes": tiny.of_classes,
    "own classes": lambda: tiny.unconditional(num_class_embeds=5),
    "bert vq": tiny.bert_vq,
    "layout": tiny.layout,
    "inpainting": tiny.inpainting,
    "inpainting vq": lambda: replace(tiny.inpainting(), autoencoder=tiny.vq()),
    "super-resolution": tiny.super_resolution,
    "pixels": tiny.pixels,
    "pixels of classes": lambda: tiny.pixels(num_class_embeds=5),
    "named": lambda: with_classes(tiny.of_classes(), names=NAMES, empty=4),
}


def with_classes(pipeline: Pipeline, **facts: Any) -> Pipeline:
    return replace(pipeline, conditionings={"classes": ClassTokens(pipeline.modules["classes"], **facts)})


NAMES = ("ant", "bee", "cow, calf", "dog")
EXPECTED = {
    "pixels": ("DDPMPipeline", {"unet", "scheduler"}),
    "pixels of classes": ("LatentDiffusionPipeline", {"unet", "scheduler"}),
    "named": ("LatentDiffusionPipeline", {"vae", "class_embedder", "unet", "scheduler"}),
    "sd 1": ("StableDiffusionPipeline", {"vae", "text_encoder", "tokenizer", "unet", "scheduler"}),
    "sdxl": (
        "StableDiffusionXLPipeline",
        {"vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler"},
    ),
    "ldm": ("LDMTextToImagePipeline", {"vqvae", "bert", "tokenizer", "unet", "scheduler"}),
    "unconditional": ("LDMPipeline", {"vqvae", "unet", "scheduler"}),
    "classes": ("LatentDiffusionPipeline", {"vae", "class_embedder", "unet", "scheduler"}),
    "own classes": ("LatentDiffusionPipeline", {"vae", "unet", "scheduler"}),
    "bert vq": ("LatentDiffusionPipeline", {"vae", "text_encoder", "tokenizer", "unet", "scheduler"}),
    "layout": ("LatentDiffusionPipeline", {"vae", "text_encoder", "tokenizer", "unet", "scheduler", "spatial"}),
    "inpainting": ("StableDiffusionInpaintPipeline", {"vae", "text_encoder", "tokenizer", "unet", "scheduler"}),
    "inpainting vq": ("LatentDiffusionPipeline", {"vae", "text_encoder", "tokenizer", "unet", "scheduler", "spatial"}),
    "super-resolution": ("LDMSuperResolutionPipeline", {"vqvae", "unet", "scheduler"}),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("saved")
            save_pipeline(KINDS[name](), made[name])
        return made[name]

    return folder


def assert_same(network: nn.Module | None, other: nn.Module | None) -> None:
    assert (network is None) == (other is None)
    if network is not None and other is not None:
        weights, others = network.state_dict(), other.state_dict()
        assert weights.keys() == others.keys()
        assert all(torch.equal(weight, others[name]) for name, weight in weights.items())
        assert network.config == other.config


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_pipeline_comes_back_bit_by_bit(name: str, saved: Callable[[str], Path]) -> None:
    pipeline, loaded = KINDS[name](), load_pipeline(saved(name))
    assert loaded.modules.keys() == pipeline.modules.keys()
    for name, network in loaded.modules.items():
        assert_same(network, pipeline.modules[name])
        assert not network.training
    assert loaded.diffusion == pipeline.diffusion
    assert loaded.conditionings.keys() == pipeline.conditionings.keys()
    assert all(each.facts == pipeline.conditionings[name].facts for name, each in loaded.conditionings.items())
    texts, others = (TextConditioning.of(each) for each in (loaded, pipeline))
    if texts is None or others is None:
        return
    assert texts.zeros_for_empty_prompt == others.zeros_for_empty_prompt
    for (_, tokenizer), (_, other) in zip(texts.encoders, others.encoders, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tokenizer(tiny.CAPTIONS), other(tiny.CAPTIONS), strict=True))


@pytest.mark.parametrize("name", KINDS)
def test_folders_and_index_are_those_of_the_class(name: str, saved: Callable[[str], Path]) -> None:
    kind, folders = EXPECTED[name]
    index = json.loads((saved(name) / "model_index.json").read_text())
    assert index["_class_name"] == kind == pipeline_class(KINDS[name]())
    assert {path.name for path in saved(name).iterdir()} == folders | {"model_index.json"}
    assert {part for part, value in index.items() if isinstance(value, list) and value[0]} == folders
    if name.startswith("pixels"):
        with pytest.raises(UserError, match="has no autoencoder"):
            find_autoencoder(saved(name))
    else:
        assert find_autoencoder(saved(name)).name in ("vae", "vqvae")


def test_the_parts_of_our_own_pipeline_load_singly_in_diffusers(saved: Callable[[str], Path]) -> None:
    from diffusers import DDIMScheduler, UNet2DConditionModel, VQModel

    folder, pipeline = saved("classes"), tiny.of_classes()
    unet, autoencoder = UNet2DConditionModel.from_pretrained(folder / "unet"), VQModel.from_pretrained(folder / "vae")
    assert DDIMScheduler.from_pretrained(folder / "scheduler").config.prediction_type == "epsilon"
    latents, t = torch.randn(2, 4, 16, 16), torch.tensor([7, 900])
    context = pipeline.modules["classes"](torch.tensor([1, 4]))
    with torch.no_grad():
        output, expected = pipeline.denoiser(latents, t, context), unet(latents, t, context).sample
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
        images = autoencoder.decode(latents / autoencoder.config.scaling_factor).sample
        torch.testing.assert_close(pipeline.autoencoder.eval().decode(latents), images, rtol=1e-4, atol=1e-5)


def edited(saved: Path, tmp_path: Path, file: str, **changes: object) -> Path:
    folder = Path(shutil.copytree(saved, tmp_path / "pipeline"))
    fields = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(json.dumps({key: value for key, value in fields.items() if value != "absent"}))
    return folder


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("sd 1", {"controlnet": ["diffusers", "ControlNetModel"]}, "the part controlnet is not supported"),
        ("sd 1", {"force_zeros_for_empty_prompt": True}, "the part force_zeros_for_empty_prompt is not supported"),
        ("sd 1", {"requires_safety_checker": "maybe"}, "requires_safety_checker is 'maybe'"),
        ("sd 1", {"vae": ["diffusers", "VQModel"]}, "the part vae is .*VQModel.*: ldm loads AutoencoderKL"),
        ("sd 1", {"unet": "absent"}, "the part unet is None"),
        ("sdxl", {"add_watermarker": True}, "add_watermarker is True"),
        ("sdxl", {"force_zeros_for_empty_prompt": 3}, "force_zeros_for_empty_prompt is 3"),
        ("sdxl", {"text_encoder": [None, None]}, r"the part text_encoder is \[None, None\]"),
        ("sdxl", {"safety_checker": [None, None]}, "the part safety_checker is not supported"),
        ("ldm", {"vae": ["diffusers", "AutoencoderKL"]}, "the part vae is not supported"),
        ("ldm", {"vqvae": ["diffusers", "VQModel"]}, "says that vqvae is VQModel, but its folder holds AutoencoderKL"),
        (
            "ldm",
            {"bert": ["transformers", "BertModel"]},
            "says that bert is BertModel, but its folder holds LDMBertModel",
        ),
        ("unconditional", {"unet": ["diffusers", "UNet2DConditionModel"]}, "the part unet is .*loads UNet2DModel"),
        ("classes", {"class_embedder": ["ldm", "Table"]}, "the part class_embedder is .*: ldm loads ClassEmbedder"),
        (
            "classes",
            {"class_embedder": "absent"},
            "do not fit together: unet.cross_attention_dim is 32, but the context has no text",
        ),
        ("sd 1", {"spatial": ["ldm", "SpatialRescaler"]}, "the part spatial is not supported"),
        (
            "layout",
            {"spatial": ["ldm", "SpatialIdentity"]},
            "says that spatial is SpatialIdentity, but its folder holds SpatialRescaler",
        ),
        ("classes", {"vae": "absent"}, "do not fit together: .* 4.* 3"),
        ("classes", {"id2label": {"0": "ant", "2": "bee"}}, "id2label does not map 0, 1, ... to names"),
        ("classes", {"id2label": ["ant"]}, "id2label does not map"),
        ("classes", {"empty_class": "last"}, "empty_class is 'last', not a class"),
        ("named", {"id2label": {"0": "ant"}}, "id2label .* 1 .* 4"),
        (
            "classes",
            {"_class_name": ["LDMPipeline"]},
            r"describes a \['LDMPipeline'\]: ldm loads StableDiffusionPipeline, ",
        ),
    ],
)
def test_an_unsupported_component_in_an_index_raises_an_error_that_names_it(
    name: str, changes: dict[str, Any], message: str, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = edited(saved(name), tmp_path, "model_index.json", **changes)
    with pytest.raises(UserError, match=message) as raised:
        load_pipeline(folder)
    assert "\n" not in str(raised.value)


def test_what_an_index_may_leave_out_has_the_defaults_of_its_class(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    index = {"force_zeros_for_empty_prompt": "absent", "add_watermarker": "absent", "image_encoder": "absent"}
    loaded = load_pipeline(edited(saved("sdxl"), tmp_path, "model_index.json", **index))
    assert loaded.conditionings["text"].zeros_for_empty_prompt


@pytest.mark.parametrize(
    ("name", "file", "changes", "message"),
    [
        (
            "sdxl",
            "tokenizer_2/tokenizer_config.json",
            {"model_max_length": 9},
            "pads to 9 tokens, but the text encoder has 16 positions",
        ),
        (
            "sd 1",
            "scheduler/scheduler_config.json",
            {"_class_name": "DDPMScheduler", "variance_type": "learned_range"},
            "unet.out_channels is 4, but .* is 4: with diffusion.learned_variance it must be 8",
        ),
        ("classes", "class_embedder/config.json", {"num_classes": 6}, r"embedding.weight .* has shape \(5, 32\)"),
        ("classes", "class_embedder/config.json", {"rows": 6}, "does not know the field rows of ClassEmbedder"),
        ("classes", "class_embedder/config.json", {"hidden_size": "absent"}, "hidden_size"),
        ("classes", "class_embedder/config.json", {"_class_name": "Table"}, "is of a Table; ldm loads ClassEmbedder"),
    ],
)
def test_components_that_do_not_fit_raise_an_error(
    name: str, file: str, changes: dict[str, Any], message: str, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        load_pipeline(edited(saved(name), tmp_path, file, **changes))


def test_networks_whose_inputs_no_component_provides_raise_an_error(tmp_path: Path) -> None:
    narrow = ClassesConfig(num_classes=5, hidden_size=31)
    for pipeline, message in (
        (tiny.unconditional(class_embed_type="timestep"), "class_embed_type is timestep"),
        (tiny.unconditional(in_channels=7), r"unet.in_channels is 7, but autoencoder.latent_channels is 4"),
        (tiny.of_classes().with_modules({"classes": ClassEmbedder(narrow)}), r"classes.hidden_size \(31\)"),
    ):
        save_pipeline(pipeline, tmp_path)
        with pytest.raises(UserError, match=message):
            load_pipeline(tmp_path)


def test_a_model_that_a_diffusers_class_would_run_differently_uses_our_pipeline_class() -> None:
    karras = DiffusionConfig(schedule=schedule_config(spacing="karras", set_alpha_to_one=True))
    zeros = TextConditioning(tiny.sd_1().conditionings["text"].encoders, zeros_for_empty_prompt=True)
    ours = "LatentDiffusionPipeline"
    for pipeline, expected in (
        (replace(tiny.sd_1(), conditionings={"text": zeros}), ours),
        (replace(tiny.sd_1(), autoencoder=tiny.vq()), ours),
        (replace(tiny.ldm_text(), diffusion=karras), ours),
        (replace(tiny.unconditional(), diffusion=karras), "LDMPipeline"),
        (replace(tiny.ldm_words_vq(), autoencoder=tiny.vq()), ours),
        (tiny.ldm_words_vq(), "LDMTextToImagePipeline"),
        (tiny.sd_2(), "StableDiffusionPipeline"),
        (tiny.t5(), "StableDiffusionPipeline"),
    ):
        assert pipeline_class(pipeline) == expected
    assert list(LAYOUTS)[-1] == ours


def test_a_model_that_the_format_cannot_express_is_not_written(tmp_path: Path) -> None:
    pipeline = tiny.unconditional(num_attention_heads=2)
    with pytest.raises(UserError, match=r"unet.num_attention_heads is 2, but diffusers' UNet2DModel"):
        save_pipeline(pipeline, tmp_path / "new")
    flow = DiffusionConfig(schedule=schedule_config(kind="flow"), prediction="v")
    with pytest.raises(UserError, match=r"diffusion\.prediction is v"):
        save_pipeline(replace(tiny.sd_1(), diffusion=flow), tmp_path / "new")
    assert not (tmp_path / "new").exists()


UNET, KL = ["diffusers", "UNet2DConditionModel"], ["diffusers", "AutoencoderKL"]
CLIP = {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
PUBLISHED: dict[str, dict[str, Any]] = {
    "stable-diffusion-v1-5": {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.6.0",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        **CLIP,
        "unet": UNET,
        "vae": KL,
    },
    "stable-diffusion-xl-base-1.0": {
        "_class_name": "StableDiffusionXLPipeline",
        "_diffusers_version": "0.19.0.dev0",
        "add_watermarker": None,
        "force_zeros_for_empty_prompt": True,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        **CLIP,
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": UNET,
        "vae": KL,
    },
    "ldm-text2im-large-256": {
        "_class_name": "LDMTextToImagePipeline",
        "_diffusers_version": "0.0.4",
        "bert": ["latent_diffusion", "LDMBertModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "tokenizer": ["transformers", "BertTokenizer"],
        "unet": UNET,
        "vqvae": KL,
    },
    "ldm-celebahq-256": {
        "_class_name": "LDMPipeline",
        "_diffusers_version": "0.1.3",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
        "vqvae": ["diffusers", "VQModel"],
    },
}


def test_the_names_of_classes_come_back(saved: Callable[[str], Path]) -> None:
    pipeline = load_pipeline(saved("named"))
    classes = pipeline.conditionings["classes"]
    assert (classes.names, classes.empty) == (pipeline.class_names, 4) == (NAMES, 4)
    unnamed = load_pipeline(saved("classes")).conditionings["classes"]
    assert (unnamed.names, unnamed.empty) == ((), None)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_index_of_a_published_pipeline_is_followed_whole(name: str) -> None:
    index = PUBLISHED[name]
    layout, kinds, *_ = read_index(index, Path("model_index.json"))
    pipeline = {folder: list(kinds[part]) for part, folder in layout.folders.items()}
    assert pipeline == {key: value for key, value in index.items() if isinstance(value, list) and key in pipeline}
    assert index.keys() - pipeline.keys() - layout.fields.keys() - set(layout.ignored) == {
        "_class_name",
        "_diffusers_version",
    }
