"""Single files <-> networks with their configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from ldm.checkpoint.compvis.contents import Contents
from ldm.checkpoint.compvis.matching import Layout, recognise, shapes_of, some
from ldm.checkpoint.compvis.modelspec import contents_from_metadata, metadata
from ldm.checkpoint.compvis.original_config import check_expressible, contents_from_original
from ldm.checkpoint.compvis.reading import read_tensors
from ldm.checkpoint.compvis.rules import Tensors
from ldm.checkpoint.compvis.vocabularies import tokenizers_from_metadata, tokenizers_to_metadata
from ldm.checkpoint.families import file_family, unsupported_file
from ldm.conditioning.text.tokenizers import Tokenizer
from ldm.config.files import find, load
from ldm.errors import UserError
from ldm.models.autoencoder.fields import fold_statistics
from ldm.storage.store import save_tensors
from ldm.storage.text import read_text
from ldm.storage.weights import build

OLD_CLIP = re.compile(
    r"^((?:cond_stage_model\.|conditioner\.embedders\.0\.)transformer\.)(?=embeddings|encoder|final_layer_norm)"
)
SCALE = "scale_factor"  # in files of models that measured their latents at the start of training


@dataclass(frozen=True)
class SingleFile:
    """The contents of a file, its networks by the names of their sections, and tokenizers of its text encoders.

    Files of the original have no tokenizers; ours have those that the configuration does not determine.
    """

    contents: Contents
    networks: Mapping[str, nn.Module]
    tokenizers: Mapping[str, Tokenizer] = field(default_factory=dict)


def read_single_file(path: str | Path, config: str | Path | None = None, ema: bool = False) -> SingleFile:
    """Read the networks of a file with the original names, on the CPU, each in the precision of the file.

    Args:
        config: in our format or the original's; by default from the file's header, or from a published model.
        ema: read the EMA weights.

    Raises:
        UserError: for tensors that are missing, unexpected, of another shape or damaged, and unknown configurations.
    """
    path = Path(path)
    tensors, header = read_tensors(path)
    tensors = _with_text_model(tensors)
    layout = Layout.of(_contents(config, header, tensors, path), tensors)
    if (problem := layout.problem(shapes_of(tensors))) is not None:
        if file_family(tensors) not in (None, "an autoencoder"):  # that is read, with its own configuration
            raise unsupported_file(path, tensors) or UserError(problem)
        raise UserError(f"{path} does not match its configuration: {problem}")
    _check_copies(layout, tensors, path)
    weights = _averaged(layout, tensors, path) if ema else tensors
    contents = _with_scale(layout.contents, tensors, path)
    networks = {name: _network(contents, name, rules.to_ours(weights), path) for name, rules in layout.rules.items()}
    return SingleFile(contents, networks, tokenizers_from_metadata(header, str(path)))


def _with_text_model(tensors: Tensors) -> Tensors:
    """Insert `text_model.`, which files from before transformers 4.6 lack (NovelAI's), into names of CLIP's weights."""
    return {OLD_CLIP.sub(r"\1text_model.", name): tensor for name, tensor in tensors.items()}


def read_config(config: str | Path) -> Contents:
    """Read a configuration by name or path, in our format or the original's."""
    path = find(config)
    return read_original(path) or Contents.of_config(load(path))


def read_original(path: Path) -> Contents | None:
    """Read a YAML file of the original; None for a file in another format, such as ours."""
    try:
        tree = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if isinstance(tree, dict) and isinstance(tree.get("model"), dict):
        return contents_from_original(tree, str(path))
    return None


def _contents(config: str | Path | None, header: dict[str, str], tensors: Tensors, path: Path) -> Contents:
    if config is not None:
        return read_config(config)
    return contents_from_metadata(header, str(path)) or recognise(shapes_of(tensors), str(path))


def _check_copies(layout: Layout, tensors: Tensors, path: Path) -> None:
    """Raise UserError unless a condition stage that is the first stage has the same weights."""
    for copy, name in layout.copies.items():
        if copy in tensors and not torch.equal(tensors[copy], tensors[name]):
            raise UserError(f"{path}: {copy} differs from {name}, but both must be the same autoencoder")


def _averaged(layout: Layout, tensors: Tensors, path: Path) -> Tensors:
    names = layout.averaged
    if missing := {average for average in names.values() if average not in tensors}:
        raise UserError(f"{path} has no EMA of all weights: it lacks {some(missing)}; convert without --ema")
    for name, average in names.items():
        if tensors[average].shape != tensors[name].shape:
            raise UserError(f"{path}: {average} has another shape than {name}: the file is damaged")
    return tensors | {name: tensors[average] for name, average in names.items()}


def _with_scale(contents: Contents, tensors: Tensors, path: Path) -> Contents:
    if SCALE not in tensors or contents.autoencoder is None:
        return contents
    if tensors[SCALE].numel() != 1:
        raise UserError(f"{path}: {SCALE} is not one number: the file is damaged")
    scaled = contents.autoencoder.model_copy(update={"scaling_factor": tensors[SCALE].item()})
    return contents.model_copy(update={"autoencoder": scaled})


def _network(contents: Contents, name: str, tensors: Tensors, path: Path) -> nn.Module:
    return build(lambda: contents.make(name), tensors, common_dtype(tensors), path)


def common_dtype(tensors: Tensors) -> torch.dtype:
    """Return the smallest dtype that holds all weights exactly; float16 for eight-bit weights."""
    found = {tensor.dtype for tensor in tensors.values()}
    wide = (torch.float16 if dtype.is_floating_point and dtype.itemsize == 1 else dtype for dtype in found)
    return reduce(torch.promote_types, wide)


def write_single_file(file: SingleFile, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write networks with the original names, as `dtype` if given; the header has our configuration and modelspec.

    The statistics of latents are folded into one scaling factor.

    Raises:
        UserError: for an option that the original does not have.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: a single file is written as .safetensors only, never as a pickle")
    contents, weights = folded(file)
    check_expressible(contents)
    prefixes = contents.prefixes()
    tensors: dict[str, Tensor] = {}
    for name, rules in contents.rules(prefixes).items():
        tensors |= rules.to_theirs(weights[name])
    tensors = {name: _ready(tensor, dtype) for name, tensor in tensors.items()}
    save_tensors(path, tensors, metadata(contents, path.stem, tensors) | tokenizers_to_metadata(file.tokenizers))


def folded(file: SingleFile) -> tuple[Contents, dict[str, Tensors]]:
    """Return contents with one scaling factor for all channels and no shift, and the weights of each network."""
    weights = {name: file.networks[name].state_dict() for name in file.contents.networks}
    contents = file.contents.model_copy(update={"attention_order": "heads"})
    if contents.autoencoder is not None:
        config, weights["autoencoder"] = fold_statistics(contents.autoencoder, weights["autoencoder"])
        contents = contents.model_copy(update={"autoencoder": config})
    return contents, weights


def _ready(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)
