"""Weights of open_clip's models: local files, and published weights by name."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

from ldm.conditioning.text.open_clip import OpenCLIPConfig, OpenCLIPTextEncoder, text_architecture
from ldm.errors import UserError
from ldm.storage.store import load_tensors
from ldm.storage.weights import build

TEXT = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.")  # the other half has other names


def load_open_clip(config: OpenCLIPConfig, dtype: torch.dtype = torch.float32) -> OpenCLIPTextEncoder:
    """Load the text encoder whose source is a local file or the name of published weights.

    Raises:
        UserError: if the weights are incomplete.
    """
    path = Path(config.source or "").expanduser()
    path = path if path.is_file() else _published(config)
    tensors = _read(path)
    start = "text." if "text.token_embedding.weight" in tensors else ""
    wanted = TEXT if config.projection_dim is None else (*TEXT, "text_projection")
    tensors = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
    text = {name: tensor for name, tensor in tensors.items() if name.startswith(wanted)}
    return build(lambda: OpenCLIPTextEncoder(config), text, dtype, path)


def _published(config: OpenCLIPConfig) -> Path:
    """Return the file of published weights, from the cache or the network."""
    import open_clip

    name = f"text.source {config.source!r}"
    found = open_clip.get_pretrained_cfg(config.model, config.source or "")
    if not found:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(config.model)) or "none"
        raise UserError(f"{name} is neither a file nor published weights of {config.model}; those are: {known}")
    if bool(found.get("quick_gelu")) != text_architecture(config.model)["quick_gelu"]:
        raise UserError(
            f"{name}: these weights want quick GELU or the lack of it; see text.model {config.model}-quickgelu"
        )
    try:
        return Path(open_clip.download_pretrained(found))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{name} of open_clip's {config.model} is not in the cache and cannot be fetched ({type(error).__name__}): "
            "go online once, or give the path of a file"
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file; of a pickle only tensors and plain values."""
    if path.suffix == ".safetensors":
        return load_tensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} contains more than weights ({reason}): download it as .safetensors") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds no table of weights: is it a file of open_clip?")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}
