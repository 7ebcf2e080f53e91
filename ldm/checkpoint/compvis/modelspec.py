"""Metadata of a single file: Stability's Model Metadata Standard 1.0.0, and our configuration."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime

import torch
from torch import Tensor

from ldm.checkpoint.compvis.contents import Contents
from ldm.config.files import load
from ldm.config.root import Config
from ldm.config.section import parse
from ldm.errors import UserError

CONFIGURATION = "ldm.config"  # our configuration, as JSON

# Published configurations with a name in the standard, and their original implementations.
ARCHITECTURES = {
    "published/sd1": ("stable-diffusion-v1", "https://github.com/CompVis/stable-diffusion"),
    "published/sd2-base": ("stable-diffusion-v2-512", "https://github.com/Stability-AI/stablediffusion"),
    "published/sd2-v": ("stable-diffusion-v2-768-v", "https://github.com/Stability-AI/stablediffusion"),
    "published/sdxl-base": ("stable-diffusion-xl-v1-base", "https://github.com/Stability-AI/generative-models"),
}
OTHER = ("latent-diffusion", "https://github.com/CompVis/latent-diffusion")
PREDICTIONS = {"eps": "epsilon"}


def metadata(contents: Contents, title: str, tensors: dict[str, Tensor]) -> dict[str, str]:
    """Return the header of a file with these contents."""
    architecture, implementation = _architecture(contents)
    found = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.implementation": implementation,
        "modelspec.title": title,
        "modelspec.date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        CONFIGURATION: json.dumps(contents.model_dump(mode="json")),
    }
    if (side := _side(contents)) is not None:
        found["modelspec.resolution"] = f"{side}x{side}"
    if contents.diffusion is not None:
        prediction = contents.diffusion.prediction
        found["modelspec.prediction_type"] = PREDICTIONS.get(prediction, prediction)
    if (digest := _hash(tensors)) is not None:
        found["modelspec.hash_sha256"] = digest
    return found


def contents_from_metadata(found: dict[str, str], where: str) -> Contents | None:
    """Return the configuration in a file's header; None if there is none.

    Raises:
        UserError: if it is damaged.
    """
    if CONFIGURATION not in found:
        return None
    try:
        tree = json.loads(found[CONFIGURATION])
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: {CONFIGURATION} in its header is not JSON: {error}") from None
    return parse(tree, Contents, f"{where}: {CONFIGURATION} in its header")


def _architecture(contents: Contents) -> tuple[str, str]:
    for name, architecture in ARCHITECTURES.items():
        if _computes(contents, load(name)):
            return architecture
    return OTHER


def _computes(contents: Contents, published: Config) -> bool:
    """Return whether a model equals a published one except for the weights."""
    if contents.unet is None or contents.diffusion is None or published.unet is None or contents.spatial is not None:
        return False
    unet = published.unet.model_copy(
        update={"sample_size": contents.unet.sample_size, "dropout": contents.unet.dropout}
    )
    return (
        contents.unet.model_dump() | {"num_attention_heads": contents.unet.heads}
        == unet.model_dump() | {"num_attention_heads": unet.heads}
        and contents.diffusion.prediction == published.diffusion.prediction
        and (contents.text_2 is None) == (published.text_2 is None)
    )


def _side(contents: Contents) -> int | None:
    """Return the side of the images in training."""
    if contents.autoencoder is None:
        return None
    if contents.unet is None:
        return contents.autoencoder.sample_size
    return contents.unet.sample_size * contents.autoencoder.downsampling_factor


def _hash(tensors: dict[str, Tensor]) -> str | None:
    """Hash everything after the header; with one dtype the tensors are ordered by name, otherwise return None."""
    if len({tensor.dtype for tensor in tensors.values()}) != 1:
        return None
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy())
    return f"0x{digest.hexdigest()}"
