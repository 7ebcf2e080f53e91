"""Folders in the layout of diffusers <-> the networks of a single file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial, reduce
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open

from ldm.checkpoint.compvis.contents import Contents
from ldm.checkpoint.compvis.files import SingleFile
from ldm.checkpoint.compvis.vocabularies import is_usual, tokenizer_for
from ldm.checkpoint.diffusers.pipeline import load_pipeline, save_pipeline
from ldm.checkpoint.families import unsupported_folder
from ldm.checkpoint.pipeline import Pipeline
from ldm.conditioning.base import Conditioning
from ldm.conditioning.classes import ClassTable, ClassTokens
from ldm.conditioning.guidance import GuidanceEmbedding
from ldm.conditioning.text.conditioning import TextConditioning
from ldm.conditioning.text.tokenizers import Tokenizer
from ldm.conditioning.unconditional import Unconditional
from ldm.config.diffusion import DiffusionConfig
from ldm.errors import UserError
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.unet.unet import UNet
from ldm.registry import SPATIAL
from ldm.storage.fields import load_fields
from ldm.storage.store import check_access
from ldm.storage.weights import DTYPES

CLASSES = {"AutoencoderKL": "autoencoder", "VQModel": "autoencoder"} | dict.fromkeys(
    ("UNet2DConditionModel", "UNet2DModel"), "unet"
)
NETWORKS: dict[str, Any] = {"autoencoder": Autoencoder, "unet": UNet}
TOKENIZERS = {"text": "tokenizer", "text_2": "tokenizer_2"}  # our section -> the part
MODULES = {"text": "text_encoder", "text_2": "text_encoder_2"}  # section -> module of a pipeline, if named otherwise
UNSUPPORTED = {
    "image": "this model generates variations of an image: CompVis files have no such model, only folders do",
}


def read_folder(folder: Path) -> SingleFile:
    """Read the networks of a pipeline, or of one network's folder, in the widest precision that there is.

    Raise UserError if it is neither, is incomplete, or needs an unsupported feature.
    """
    if (folder / "model_index.json").is_file():
        return _of_pipeline(load_pipeline(folder, _stored_dtype(folder)))
    path = folder / "config.json"
    kind = load_fields(path).get("_class_name") if path.is_file() else None
    if kind not in CLASSES:
        if (error := unsupported_folder(folder)) is not None:
            raise error
        raise UserError(f"{folder} is neither a pipeline nor one of {', '.join(CLASSES)}")
    name = CLASSES[kind]
    network = NETWORKS[name].from_pretrained(folder, _stored_dtype(folder))
    return SingleFile(Contents(**{name: network.config}), {name: network})


def write_folder(file: SingleFile, folder: Path, tokenizer: str | None = None) -> None:
    """Write the networks as a pipeline, or one network alone: a new folder that is whole or not there.

    `tokenizer` is a folder or a Hub id, whose vocabulary takes the place of the one that the text encoder has
    otherwise. Raises UserError for networks that do not belong to a pipeline or do not fit each other.
    """
    if tokenizer is not None and file.contents.text is None:
        raise UserError("--tokenizer goes with a text encoder, which SRC has not")
    save: Callable[[Path], None]
    if len(file.networks) == 1:
        [network] = file.networks.values()
        save = cast(Any, network).save_pretrained
    else:
        pipeline = _to_pipeline(file, tokenizer)
        pipeline.check(folder)
        save = partial(save_pipeline, pipeline)
    work = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        save(work)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _of_pipeline(pipeline: Pipeline) -> SingleFile:
    for name in pipeline.conditionings:
        if name in UNSUPPORTED:
            raise UserError(UNSUPPORTED[name])
    if "inpainting" in pipeline.conditionings and "text" not in pipeline.conditionings:
        raise UserError(
            "CompVis files of inpainting without text have latents before the mask, ours have them after it"
        )
    if pipeline.denoiser_name != "unet":
        raise UserError(f"CompVis files have U-Nets only, but the denoiser of this model is {pipeline.denoiser_name}")
    modules = pipeline.modules
    sections = {name: section for name, section in pipeline.sections.items() if name != "denoiser"}
    text = TextConditioning.of(pipeline)
    contents = Contents(zeros_for_empty_prompt=text is not None and text.zeros_for_empty_prompt, **sections)
    networks = {name: modules[MODULES.get(name, name)] for name in contents.networks}
    kept: dict[str, Tokenizer] = {}
    for name, (encoder, tokenizer) in zip(("text", "text_2"), () if text is None else text.encoders, strict=False):
        if not is_usual(tokenizer, encoder.config):
            kept[name] = tokenizer
    return SingleFile(contents, networks, kept)


def _to_pipeline(file: SingleFile, source: str | None) -> Pipeline:
    contents, networks = file.contents, file.networks
    if contents.text is None and contents.spatial is not None and contents.spatial.kind == "inpainting":
        raise _no_place("the original's inpainting, with latents before a mask of -1 and 1,")
    found: list[Conditioning] = []
    encoders = [(networks[name], _tokenizer(file, name, source)) for name in ("text", "text_2") if name in networks]
    if encoders:
        found.append(TextConditioning(cast(Any, encoders), contents.zeros_for_empty_prompt))
    if "classes" in networks:
        found.append(ClassTokens(cast(Any, networks["classes"])))
    if contents.spatial is not None:
        kind = SPATIAL[contents.spatial.kind]
        found.append(kind(networks.get("spatial") or kind.network(contents.spatial).eval()))
    unet, autoencoder = cast(UNet, networks["unet"]), cast(Autoencoder, networks["autoencoder"])
    if unet.config.num_class_embeds is not None:
        found.append(ClassTable())
    if unet.config.embeds_guidance:
        found.append(GuidanceEmbedding())
    named = {each.name: each for each in found or [Unconditional()]}
    return Pipeline(autoencoder, unet, contents.diffusion or DiffusionConfig(), named)


def _tokenizer(file: SingleFile, name: str, source: str | None) -> Tokenizer:
    config = getattr(file.contents, name)
    own = file.tokenizers.get(name) if source is None else None
    found = own or tokenizer_for(config, source, TOKENIZERS[name])
    if found is None:
        raise _no_place(f"{name}.tokens {config.tokens}")
    return found


def _no_place(option: str) -> UserError:
    return UserError(
        f"{option}: no pipeline in the layout of diffusers has such a condition; make the file safe as one file, with "
        "a DST that ends in .safetensors"
    )


def _stored_dtype(folder: Path) -> torch.dtype:
    """Return the smallest type that holds all weights of a folder exactly."""
    found = {dtype for path in folder.rglob("*.safetensors") for dtype in _dtypes(path)}
    return reduce(torch.promote_types, found) if found else torch.float32


def _dtypes(path: Path) -> set[torch.dtype]:
    check_access(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a complete safetensors file ({error}): download it again") from error
    return {DTYPES[name] for name in names if name in DTYPES}
