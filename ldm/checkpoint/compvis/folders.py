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
from ldm.checkpoint.diffusers.pipeline import Parts, load_pipeline, save_pipeline
from ldm.checkpoint.parts import check_fit
from ldm.conditioning.spatial import make_spatial
from ldm.conditioning.text.tokenizers import Tokenizer
from ldm.config.diffusion import DiffusionConfig
from ldm.errors import UserError
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.unet.unet import UNet
from ldm.storage.fields import load_fields
from ldm.storage.weights import DTYPES

CLASSES = {"AutoencoderKL": "autoencoder", "VQModel": "autoencoder"} | dict.fromkeys(
    ("UNet2DConditionModel", "UNet2DModel"), "unet"
)
NETWORKS: dict[str, Any] = {"autoencoder": Autoencoder, "unet": UNet}
TOKENIZERS = {"text": "tokenizer", "text_2": "tokenizer_2"}  # our section -> the part
PARTS = {  # our section -> the part
    "autoencoder": "autoencoder",
    "unet": "unet",
    "text": "text_encoder",
    "text_2": "text_encoder_2",
    "classes": "classes",
    "spatial": "spatial",
}


def read_folder(folder: Path) -> SingleFile:
    """The networks of a pipeline, or of one network's folder, in the widest precision that there is.

    Raises UserError where it is neither, is not whole, or asks for what we do not have.
    """
    if (folder / "model_index.json").is_file():
        return _of_parts(load_pipeline(folder, _stored_dtype(folder)))
    path = folder / "config.json"
    kind = load_fields(path).get("_class_name") if path.is_file() else None
    if kind not in CLASSES:
        raise UserError(f"{folder} is neither a pipeline nor one of {', '.join(CLASSES)}")
    name = CLASSES[kind]
    network = NETWORKS[name].from_pretrained(folder, _stored_dtype(folder))
    return SingleFile(Contents(**{name: network.config}), {name: network})


def write_folder(file: SingleFile, folder: Path, tokenizer: str | None = None) -> None:
    """Write the networks as a pipeline, or one network alone: a new folder that is whole or not there.

    `tokenizer` is a folder or a Hub id, whose vocabulary takes the place of the one that the text encoder has
    otherwise. UserError for what a pipeline has no place for, and for parts that do not fit.
    """
    if tokenizer is not None and file.contents.text is None:
        raise UserError("--tokenizer goes with a text encoder, which SRC has not")
    save: Callable[[Path], None]
    if len(file.networks) == 1:
        [network] = file.networks.values()
        save = cast(Any, network).save_pretrained
    else:
        parts = _to_parts(file, tokenizer)
        check_fit(parts, folder)
        save = partial(save_pipeline, parts)
    work = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        save(work)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _of_parts(parts: Parts) -> SingleFile:
    if parts.image_encoder is not None:
        raise UserError("a model that varies an image: ldm writes no single file of such a one, only its folder")
    found = {name: getattr(parts, part) for name, part in PARTS.items()}
    if parts.spatial is not None and parts.spatial.config.kind == "inpainting":
        raise UserError("the original's files have latents before the mask of inpainting, ours and diffusers' after it")
    contents = Contents(
        diffusion=parts.diffusion,
        zeros_for_empty_prompt=parts.zeros_for_empty_prompt,
        **{name: network.config for name, network in found.items() if network is not None},
    )
    networks = {name: found[name] for name in contents.networks}
    kept: dict[str, Tokenizer] = {}
    for name, part in TOKENIZERS.items():
        tokenizer = getattr(parts, part)
        if tokenizer is not None and not is_usual(tokenizer, getattr(contents, name)):
            kept[name] = tokenizer
    return SingleFile(contents, networks, kept)


def _to_parts(file: SingleFile, source: str | None) -> Parts:
    contents = file.contents
    if contents.spatial is not None and contents.spatial.kind == "inpainting":
        raise _no_place("the original's inpainting, with latents before a mask of -1 and 1,")
    parts: dict[str, Any] = {part: file.networks.get(name) for name, part in PARTS.items()}
    if parts["spatial"] is None and contents.spatial is not None:  # one without weights
        parts["spatial"] = make_spatial(contents.spatial)
    for name, part in TOKENIZERS.items():
        config = getattr(contents, name)
        parts[part] = None
        if config is not None:
            own = file.tokenizers.get(name) if source is None else None
            parts[part] = own or tokenizer_for(config, source, part)
            if parts[part] is None:
                raise _no_place(f"{name}.tokens {config.tokens}")
    diffusion = contents.diffusion or DiffusionConfig()
    return Parts(**parts, diffusion=diffusion, zeros_for_empty_prompt=contents.zeros_for_empty_prompt)


def _no_place(option: str) -> UserError:
    return UserError(
        f"{option}: no pipeline in the layout of diffusers has such a condition; make the file safe as one file, with "
        "a DST that ends in .safetensors"
    )


def _stored_dtype(folder: Path) -> torch.dtype:
    """The smallest type that holds all weights of a folder exactly."""
    found = {dtype for path in folder.rglob("*.safetensors") for dtype in _dtypes(path)}
    return reduce(torch.promote_types, found) if found else torch.float32


def _dtypes(path: Path) -> set[torch.dtype]:
    try:
        with safe_open(path, framework="pt") as file:
            names = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no whole safetensors file ({error}): get it anew") from error
    return {DTYPES[name] for name in names if name in DTYPES}
