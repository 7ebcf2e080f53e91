"""Describe a target of `ldm info`: the configuration of its networks, its stored parameters and its training."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ldm import config as configuration
from ldm.checkpoint.compvis.contents import Contents
from ldm.checkpoint.compvis.files import read_original
from ldm.checkpoint.compvis.matching import recognise
from ldm.checkpoint.compvis.modelspec import contents_from_metadata
from ldm.checkpoint.diffusers.layouts import read_index
from ldm.checkpoint.diffusers.scheduler_fields import scheduler_from_fields
from ldm.checkpoint.find import built_in, find_model, step_folders
from ldm.conditioning.classes import classes_from_fields
from ldm.conditioning.spatial import spatial_from_fields
from ldm.conditioning.text.encoder import TextSection
from ldm.conditioning.text.format import encoder_class, text_from_fields
from ldm.config.root import Config
from ldm.config.section import Section
from ldm.errors import UserError
from ldm.info.headers import Header, read_folder, read_headers
from ldm.info.parameters import Counts, by_part
from ldm.models.autoencoder.fields import autoencoder_from_fields
from ldm.models.unet.fields import unet_from_fields
from ldm.storage.fields import Fields, load_fields

# Sections by folder of a pipeline; other networks, such as a safety checker, go by the name of their folder.
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
    """Facts about a target before anything is counted."""

    target: str
    kind: str
    contents: Contents
    stored: dict[str, Counts] | None = None  # parameters in files, by section and name; None without files
    config: Config | None = None  # that trained or will train it
    step: int | None = None  # of the checkpoint
    notes: list[str] = field(default_factory=list)  # what could not be read
    problem: str | None = None  # why `ldm generate` cannot run a pipeline
    is_pipeline: bool = False

    @property
    def stage(self) -> str | None:
        """Training stage of the configuration; None without one."""
        if self.config is None:
            return None
        if self.config.classifier is not None:
            return "classifier"
        return "autoencoder" if self.contents.unet is None else "unet"

    @property
    def tokens(self) -> int:
        """Tokens of the context: of the text, 1 for a class, CLIP's 77 for a U-Net alone."""
        if self.contents.classes is not None:
            return 1
        return 77 if self.contents.text is None else self.contents.text.max_length

    @property
    def latent_side(self) -> int | None:
        """Height and width of the latents in training; None if unknown."""
        autoencoder, unet = self.contents.autoencoder, self.contents.unet
        if self.stored is None and self.config is not None and autoencoder is not None:
            return self.config.data.size // autoencoder.downsampling_factor
        if unet is not None:
            return unet.sample_size
        return None if autoencoder is None else autoencoder.sample_size // autoencoder.downsampling_factor


def describe(target: str) -> Description:
    """Describe a configuration (name or path), a run, a diffusers directory, a built-in model or a single file.

    A name that both a built-in model and a configuration have means the model.

    Raises:
        UserError: if the target is none of these, or damaged.
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
        f"{target!r} is not a file, a run, a diffusers directory, a built-in model or one of the configurations "
        f"{', '.join(configuration.names())}"
    )


def of_config(target: str, config: Config) -> Description:
    """Describe a configuration."""
    return Description(target, "configuration", Contents.of_config(config), config=config)


def _file(target: str, path: Path) -> Description:
    if path.suffix in (".yaml", ".yml"):
        original = read_original(path)
        if original is not None:
            return Description(target, "configuration of the original", original)
        return of_config(target, configuration.load(path))
    if path.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        raise UserError(f"{path} is a pickle: convert it to safetensors with `ldm convert` first")
    if path.suffix != ".safetensors":
        raise UserError(f"{path} is neither a configuration (.yaml) nor weights (.safetensors)")
    headers, metadata = read_headers(path)
    shapes = {name: header.shape for name, header in headers.items()}
    contents, notes = _contents(shapes, metadata, path)
    stored = by_part({name: header.parameters for name, header in headers.items()})
    return Description(target, "single file", contents.within(shapes), stored, notes=notes)


def _contents(shapes: dict[str, tuple[int, ...]], metadata: dict[str, str], path: Path) -> tuple[Contents, list[str]]:
    """Return the contents of a single file by its metadata or its shapes, and notes on why they are unknown."""
    try:
        found = contents_from_metadata(metadata, str(path))
    except UserError as error:
        return Contents(), [str(error)]
    try:
        return found or recognise(shapes, str(path)), []
    except UserError:
        return Contents(), ["it matches no published configuration, or several: only its parameters are known"]


def _folder(target: str, folder: Path) -> Description:
    newest, steps = find_model(folder), step_folders(folder)
    networks = _networks(newest)
    if not networks:
        raise UserError(f"{folder} is not a model: it has no config.json, model_index.json or finished step")
    sections, notes = _sections(networks, newest)
    stored = {name: _counts(read_folder(path), sections.get(name)) for name, path in networks.items()}
    notes += [f"{networks[name]} has no .safetensors to count" for name, counts in stored.items() if not counts]
    stored = {name: counts for name, counts in stored.items() if counts}
    config = configuration.load_saved(newest / "config.yaml") if (newest / "config.yaml").is_file() else None
    kind = "run" if config is not None else "pipeline" if (newest / "model_index.json").is_file() else "network"
    step = _step_of(steps[-1] if steps else newest)
    described = Description(target, kind, Contents(**sections), stored, config, step, notes)
    index = newest / "model_index.json"
    return replace(described, is_pipeline=True, problem=_problem(index, notes)) if index.is_file() else described


def _problem(index: Path, notes: list[str]) -> str | None:
    """Return the error that `ldm generate` would raise for a pipeline's index, parts or missing weights, if any."""
    try:
        _, _, places, _ = read_index(load_fields(index), index)
    except UserError as error:
        return str(error)
    missing = [f"{place} is missing" for place in places.values() if not place.is_dir()]
    return next(iter([*missing, *notes]), None)


def _networks(folder: Path) -> dict[str, Path]:
    """Return the folders of networks, by section."""
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
    """Read the sections of a folder's networks; return notes on those that are unsupported."""
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
    """Return the parameters by name, without unused tensors of text encoders."""
    if isinstance(section, TextSection):
        headers = encoder_class(section).network_tensors(headers)
    return {name: header.parameters for name, header in headers.items()}


def _step_of(folder: Path) -> int | None:
    found = re.fullmatch(r"step-(\d+)", folder.resolve().name)
    return int(found[1]) if found else None
