"""What a target is: the sections of its networks, the parameters its files hold, what it was trained with."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm import config as configuration
from ldm.checkpoint.class_tables import classes_from_fields
from ldm.checkpoint.compvis.contents import Contents
from ldm.checkpoint.compvis.files import read_original
from ldm.checkpoint.compvis.matching import recognise
from ldm.checkpoint.compvis.modelspec import contents_from_metadata
from ldm.checkpoint.diffusers.scheduler_fields import scheduler_from_fields
from ldm.checkpoint.diffusers.unet_fields import unet_from_fields
from ldm.checkpoint.find import built_in, find_model, step_folders
from ldm.checkpoint.spatial import spatial_from_fields
from ldm.conditioning.text.encoder import TextSection
from ldm.conditioning.text.files import network_tensors
from ldm.conditioning.text.format import text_from_fields
from ldm.config.root import Config
from ldm.config.section import Section
from ldm.errors import UserError
from ldm.info.headers import Header, read_folder, read_headers
from ldm.info.parameters import Counts, by_part
from ldm.models.autoencoder.fields import autoencoder_from_fields
from ldm.storage.fields import Fields, load_fields

# The sections of a pipeline's folders; what else has weights, such as a safety checker, goes by its folder's name.
SECTIONS = {
    "vae": "autoencoder",
    "vqvae": "autoencoder",
    "unet": "unet",
    "text_encoder": "text",
    "bert": "text",
    "text_encoder_2": "text_2",
    "class_embedder": "classes",
    "spatial": "spatial",
}
READERS: dict[str, Callable[[Fields, Path], Any]] = {
    "autoencoder": autoencoder_from_fields,
    "unet": unet_from_fields,
    "text": text_from_fields,
    "text_2": text_from_fields,
    "classes": classes_from_fields,
    "spatial": spatial_from_fields,
    "diffusion": scheduler_from_fields,
}


@dataclass(frozen=True)
class Description:
    """All that is known of a target before anything is counted."""

    target: str
    kind: str
    contents: Contents
    stored: dict[str, Counts] | None = None  # parameters that files hold, by section and name; None: there are no files
    config: Config | None = None  # what it was or is to be trained with
    step: int | None = None  # at which it was saved
    notes: list[str] = field(default_factory=list)  # what could not be followed

    @property
    def stage(self) -> str | None:
        """Which of the configuration's trainings it is of; None without a configuration."""
        if self.config is None:
            return None
        if self.config.classifier is not None:
            return "classifier"
        return "autoencoder" if self.contents.unet is None else "unet"

    @property
    def tokens(self) -> int:
        """Of the context: of the text, one of a class, CLIP's 77 where there is a U-Net alone."""
        if self.contents.classes is not None:
            return 1
        return 77 if self.contents.text is None else self.contents.text.max_length

    @property
    def latent_side(self) -> int | None:
        """Of the latents it was or is to be trained on; None where nothing says it."""
        autoencoder, unet = self.contents.autoencoder, self.contents.unet
        if self.stored is None and self.config is not None and autoencoder is not None:
            return self.config.data.size // autoencoder.downsampling_factor
        if unet is not None:
            return unet.sample_size
        return None if autoencoder is None else autoencoder.sample_size // autoencoder.downsampling_factor


def describe(target: str) -> Description:
    """A configuration (name or path), a run, a directory in diffusers layout, a built-in model or a single file.

    A name of both a built-in model and a configuration means the model. UserError when it is none of them, or damaged.
    """
    path = Path(target).expanduser()
    if path.is_file():
        return _file(target, path)
    if path.is_dir():
        return _folder(target, path)
    if (found := built_in(target)) is not None:
        return _folder(target, found)
    if target in configuration.names():
        return of_config(target, configuration.load(target))
    raise UserError(
        f"nothing to tell of {target!r}: neither a file, a run, a diffusers directory nor a built-in model, "
        f"nor one of the configurations {', '.join(configuration.names())}"
    )


def of_config(target: str, config: Config) -> Description:
    """A configuration, of which nothing is on the disk."""
    return Description(target, "configuration", Contents.of_config(config), config=config)


def _file(target: str, path: Path) -> Description:
    if path.suffix in (".yaml", ".yml"):
        original = read_original(path)
        if original is not None:
            return Description(target, "configuration of the original", original)
        return of_config(target, configuration.load(path))
    if path.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        raise UserError(f"{path} is a pickle: make it a safetensors file with `ldm convert`, then ask again")
    if path.suffix != ".safetensors":
        raise UserError(f"{path} is neither a configuration (.yaml) nor a file of weights (.safetensors)")
    headers, metadata = read_headers(path)
    shapes = {name: header.shape for name, header in headers.items()}
    contents, notes = _contents(shapes, metadata, path)
    stored = by_part({name: header.parameters for name, header in headers.items()})
    return Description(target, "single file", contents.within(shapes), stored, notes=notes)


def _contents(shapes: dict[str, tuple[int, ...]], metadata: dict[str, str], path: Path) -> tuple[Contents, list[str]]:
    """What a single file's header or its shapes tell of its networks, and why they tell nothing."""
    try:
        found = contents_from_metadata(metadata, str(path))
    except UserError as error:
        return Contents(), [str(error)]
    try:
        return found or recognise(shapes, str(path)), []
    except UserError:
        return Contents(), ["it is of no published configuration, or of several: its parameters alone are known"]


def _folder(target: str, folder: Path) -> Description:
    newest, steps = find_model(folder), step_folders(folder)
    networks = _networks(newest)
    if not networks:
        raise UserError(f"{folder} holds no model: neither config.json, model_index.json nor a finished step")
    sections, notes = _sections(networks, newest)
    stored = {name: _counts(read_folder(path), sections.get(name)) for name, path in networks.items()}
    notes += [f"{networks[name]} has no .safetensors to count" for name, counts in stored.items() if not counts]
    stored = {name: counts for name, counts in stored.items() if counts}
    config = configuration.load(newest / "config.yaml") if (newest / "config.yaml").is_file() else None
    kind = "run" if config is not None else "pipeline" if (newest / "model_index.json").is_file() else "network"
    step = _step_of(steps[-1] if steps else newest)
    return Description(target, kind, Contents(**sections), stored, config, step, notes)


def _networks(folder: Path) -> dict[str, Path]:
    """The folders of networks, by section."""
    if (folder / "config.json").is_file():
        return {_section_of(load_fields(folder / "config.json")): folder}
    found = sorted(path.parent for path in folder.glob("*/config.json"))
    return {SECTIONS.get(path.name, path.name): path for path in found if not path.name.startswith((".", "step-"))}


def _section_of(fields: Fields) -> str:
    name = str(fields.get("_class_name"))  # transformers' files have none
    starts = {"UNet": "unet", "Autoencoder": "autoencoder", "VQ": "autoencoder"}
    starts |= {"ClassEmbedder": "classes", "Spatial": "spatial"}
    return next((section for start, section in starts.items() if name.startswith(start)), "text")


def _sections(networks: dict[str, Path], folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The sections of what a folder holds, and why we do not have the others."""
    sections: dict[str, Any] = {}
    notes = []
    files = {name: path / "config.json" for name, path in networks.items() if name in READERS}
    if (folder / "scheduler").is_dir():
        files["diffusion"] = folder / "scheduler" / "scheduler_config.json"
    for name, path in files.items():
        try:
            sections[name] = READERS[name](load_fields(path), path)
        except UserError as error:
            notes.append(str(error))
    return sections, notes


def _counts(headers: dict[str, Header], section: Section | None) -> Counts:
    """Parameters by name, without what files of text encoders hold besides and nobody uses."""
    if isinstance(section, TextSection):
        headers = network_tensors(headers, section.kind)
    return {name: header.parameters for name, header in headers.items()}


def _step_of(folder: Path) -> int | None:
    found = re.fullmatch(r"step-(\d+)", folder.resolve().name)
    return int(found[1]) if found else None
