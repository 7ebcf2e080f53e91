"""Networks with a folder in the layout of diffusers: `config.json` and the weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ldm.config.section import Section, parse
from ldm.storage.fields import DIFFUSERS_VERSION, Fields, expect_class, known_fields, load_fields
from ldm.storage.store import save_json
from ldm.storage.weights import SHARD_SIZE, build, load_weights, save_weights

STEM = "diffusion_pytorch_model"

# Attention weights had these names in diffusers before 0.15; Stable Diffusion 1's autoencoder still has them.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class Network(nn.Module):
    """A network built from its section of the configuration, with `from_pretrained` and `save_pretrained`.

    By default `config.json` holds the options of the section; a network of diffusers overrides `class_name`,
    `class_names`, `to_fields` and `from_fields`.
    """

    section: ClassVar[type[Section]]

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def class_names(cls) -> tuple[str, ...]:
        """Return values of `_class_name` that `from_fields` reads."""
        return (cls.__name__,)

    @classmethod
    def class_name(cls, config: Any) -> str:
        """Return the `_class_name` of a configuration."""
        return cls.__name__

    @classmethod
    def to_fields(cls, config: Any) -> Fields:
        """Convert the options to `config.json`.

        Raises:
            UserError: for an option that the format cannot express.
        """
        kind = {"_class_name": cls.class_name(config), "_diffusers_version": DIFFUSERS_VERSION}
        return kind | config.model_dump(mode="json")

    @classmethod
    def from_fields(cls, fields: Fields, where: Path) -> Any:
        """Convert `config.json` to the options.

        Raises:
            UserError: for a field that is unknown or unsupported.
        """
        expect_class(fields, cls.class_names(), where)
        known = known_fields(fields, cls.section().model_dump(mode="json"), {}, where)
        return parse(known, cls.section, str(where))

    @classmethod
    def from_pretrained(cls, path: str | Path, dtype: torch.dtype = torch.float32) -> Self:
        """Load a folder such as `runs/mine/unet`, on the CPU and in evaluation mode.

        Raises:
            UserError: if it is incomplete, damaged or unsupported.
        """
        folder = Path(path)
        config = cls.from_fields(load_fields(folder / "config.json"), folder / "config.json")
        return build(lambda: cls(config), load_network_weights(folder), dtype, folder)

    def save_pretrained(self, path: str | Path, dtype: torch.dtype | None = None, shard_size: int = SHARD_SIZE) -> None:
        """Write `config.json` and the weights, converted to `dtype` if given.

        Raises:
            UserError: for an option that the format cannot express, before anything is written.
        """
        save_network(Path(path), self.to_fields(self.config), self.state_dict(), dtype, shard_size)


def load_network_weights(folder: Path) -> dict[str, Tensor]:
    """Load the weights in a folder, under the names of current diffusers versions."""
    return {_current_name(name): tensor for name, tensor in load_weights(folder, STEM).items()}


def _current_name(name: str) -> str:
    return re.sub(r"(\.attentions\.\d+\.)(\w+)", lambda found: found[1] + OLD_ATTENTION.get(found[2], found[2]), name)


def save_network(
    folder: Path,
    fields: Fields,
    tensors: dict[str, Tensor],
    dtype: torch.dtype | None = None,
    shard_size: int = SHARD_SIZE,
) -> None:
    """Write weights, converted to `dtype` if given, and then `config.json`."""
    save_weights(folder, STEM, tensors, dtype, shard_size)
    save_json(folder / "config.json", fields)
