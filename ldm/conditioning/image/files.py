"""Encoders of an image <-> their folders: CLIP's in the layout of transformers, our own in one of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from ldm.checkpoint.hub import fetch
from ldm.conditioning.image.encoders import (
    CLIP_MEAN,
    CLIP_STD,
    CLIPImageConfig,
    ImageEncoder,
    ImageSection,
    OwnImageConfig,
    make_image_encoder,
)
from ldm.config.section import parse
from ldm.errors import UserError
from ldm.registry import IMAGE_ENCODERS
from ldm.storage.fields import DIFFUSERS_VERSION, Fields, Fixed, check_fixed, known_fields, load_fields
from ldm.storage.renames import current_fields
from ldm.storage.store import save_json
from ldm.storage.weights import build, load_weights, save_weights

OWN_CLASS, CLIP_CLASS = "ImageEncoder", "CLIPVisionModelWithProjection"
IMAGE_ENCODER = "image_encoder"  # its folder in a pipeline of diffusers
STEMS = {"own": "diffusion_pytorch_model", "clip": "model"}
CLIP_NAMES = {name: name for name in CLIPImageConfig.model_fields if name not in ("kind", "source", "frozen")}
# Of transformers' class, where a file has none.
CLIP_DEFAULTS: Fields = {
    "image_size": 224,
    "patch_size": 32,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 512,
}
CLIP_FIXED: Fixed = {"num_channels": (3,)}
# Additional content of files of whole CLIPs and of old versions; newer versions leave out the first part of the names.
CLIP_UNUSED = r"text_model\.|text_projection\.|logit_scale$|vision_model\.embeddings\.position_ids$"
CLIP_SHORT = r"^(?=(embeddings|pre_layrnorm|encoder|post_layernorm)\.)"


def load_image_config(folder: Path) -> ImageSection:
    """Return the section that an encoder's `config.json` describes.

    Raises:
        UserError: for what cannot be had.
    """
    path = folder / "config.json"
    fields = current_fields("image_encoder", load_fields(path))
    if fields.get("_class_name") == OWN_CLASS:
        own = dict.fromkeys(name for name in OwnImageConfig.model_fields if name not in ("kind", "frozen"))
        return parse(known_fields(fields, own, {}, path), OwnImageConfig, str(path))
    if isinstance(fields.get("vision_config"), dict):  # a whole CLIP
        fields = fields["vision_config"] | {"projection_dim": fields.get("projection_dim", 512)}
    elif fields.get("model_type") != "clip_vision_model":
        raise UserError(f"{path} has model_type {fields.get('model_type')}: choose a clip_vision_model or a clip")
    check_fixed(fields, CLIP_FIXED, path)
    known = {name: fields.get(name, default) for name, default in CLIP_DEFAULTS.items()}
    config = parse(known, CLIPImageConfig, str(path))
    usual = config.intermediate_size == 4 * config.hidden_size
    return config.model_copy(update={"intermediate_size": None}) if usual else config


def load_image_encoder(folder: Path, dtype: torch.dtype = torch.float32) -> ImageEncoder:
    """Load an encoder from a folder that transformers or ldm wrote.

    Raises:
        UserError: if the folder is incomplete.
    """
    config = load_image_config(folder)
    tensors = load_weights(folder, STEMS[config.kind])
    if config.kind == "clip":
        named = {re.sub(CLIP_SHORT, "vision_model.", name): tensor for name, tensor in tensors.items()}
        tensors = {name: tensor for name, tensor in named.items() if not re.match(CLIP_UNUSED, name)}
    return build(lambda: make_image_encoder(config), tensors, dtype, folder)


def load_source(config: CLIPImageConfig, dtype: torch.dtype = torch.float32) -> ImageEncoder:
    """Load the encoder of `source`."""
    assert config.source is not None
    folder = Path(config.source).expanduser()
    folder = folder if folder.is_dir() else fetch(config.source)
    whole = folder / IMAGE_ENCODER  # of a pipeline
    encoder = load_image_encoder(whole if whole.is_dir() else folder, dtype)
    wrong = [
        f"image.{name} is {getattr(config, name)}, there {value}"
        for name, value in encoder.config
        if name in CLIP_NAMES and name in config.model_fields_set and getattr(config, name) != value
    ]
    if encoder.config.kind != config.kind or wrong:
        found = "; ".join(wrong) or f"it is of kind {encoder.config.kind}"
        raise UserError(f"image.source {config.source} differs from the encoder of the configuration: {found}")
    return encoder


def save_image_encoder(
    encoder: ImageEncoder, folder: Path, dtype: torch.dtype | None = None, processor: Path | None = None
) -> None:
    """Write an encoder, its weights as `dtype` if given, and for a CLIP to `processor` how images are prepared."""
    config = encoder.config
    sizes = config.model_dump(mode="json", exclude={"kind", "frozen", "source"})
    if isinstance(config, CLIPImageConfig):
        inner = config.intermediate_size or 4 * config.hidden_size
        fields = {"architectures": [CLIP_CLASS], "model_type": "clip_vision_model", "num_channels": 3, **sizes}
        fields["intermediate_size"] = inner
        if processor is not None:
            save_json(processor / "preprocessor_config.json", _processor_fields(config.image_size))
    else:
        fields = {"_class_name": OWN_CLASS, "_diffusers_version": DIFFUSERS_VERSION, **sizes}
    save_weights(folder, STEMS[config.kind], encoder.state_dict(), dtype)
    save_json(folder / "config.json", fields)


def _processor_fields(side: int) -> Fields:
    """Return fields of transformers' CLIPImageProcessor: shortest side to `side`, middle square, normalized."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "do_convert_rgb": True,
    }


def known_parts() -> Mapping[str, tuple[tuple[str, str], ...]]:
    """Return parts of a pipeline that belong to an image encoder, with the classes that can be loaded."""
    processors = (("transformers", "CLIPImageProcessor"), ("transformers", "CLIPFeatureExtractor"))
    return {"image_encoder": tuple(encoder.part for encoder in IMAGE_ENCODERS.values()), "processor": processors}
