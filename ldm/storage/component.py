"""Small networks in a layout of our own: `config.json` with the section, and weights if there are any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ldm.config.section import Section, parse
from ldm.storage.fields import DIFFUSERS_VERSION, Fields, expect_class, known_fields, load_fields
from ldm.storage.store import save_json
from ldm.storage.weights import build, load_weights, save_weights

STEM = "diffusion_pytorch_model"
S = TypeVar("S", bound=Section)
N = TypeVar("N", bound=nn.Module)


def load_component(make: Callable[[Any], N], section: type[Section], folder: Path, dtype: torch.dtype) -> N:
    """Load a network that `save_component` wrote.

    Raises:
        UserError: if it is incomplete.
    """
    config = component_section(section, load_fields(folder / "config.json"), folder / "config.json", make.__name__)
    return load_network(make, config, folder, dtype)


def load_network(make: Callable[[Any], N], config: Section, folder: Path, dtype: torch.dtype) -> N:
    """Load the weights of a network with this section, if it has any."""
    with torch.device("meta"):
        has_weights = bool(make(config).state_dict())
    return build(lambda: make(config), load_weights(folder, STEM) if has_weights else {}, dtype, folder)


def component_section(section: type[S], fields: Fields, where: Path, *class_names: str) -> S:
    """Return the section in a `config.json` of one of these classes."""
    expect_class(fields, class_names, where)
    return parse(known_fields(fields, dict.fromkeys(section.model_fields), {}, where), section, str(where))


def save_component(network: Any, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a network with a `config`, its weights as `dtype` if given."""
    if tensors := network.state_dict():
        save_weights(folder, STEM, tensors, dtype)
    names = {"_class_name": type(network).__name__, "_diffusers_version": DIFFUSERS_VERSION}
    save_json(folder / "config.json", names | network.config.model_dump(mode="json"))
