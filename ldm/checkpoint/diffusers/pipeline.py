"""Whole pipelines in the layout of diffusers, of the classes in `ldm.checkpoint.diffusers.layouts`."""

from __future__ import annotations

from pathlib import Path

import torch

from ldm.checkpoint.class_tables import load_class_embedder, read_class_facts, save_class_embedder
from ldm.checkpoint.diffusers.layouts import LAYOUTS, ZEROS, Kind, Layout, make_index, network_kinds, read_index
from ldm.checkpoint.diffusers.scheduler_fields import scheduler_from_fields, scheduler_to_fields
from ldm.checkpoint.find import find_autoencoder as find_autoencoder
from ldm.checkpoint.find import find_model as find_model
from ldm.checkpoint.find import step_folders as step_folders
from ldm.checkpoint.parts import Parts as Parts
from ldm.checkpoint.parts import check_fit
from ldm.checkpoint.spatial import load_spatial, save_spatial, spatial_of_class
from ldm.conditioning.image.files import load_image_encoder, save_image_encoder
from ldm.conditioning.text.encoder import TextEncoder
from ldm.conditioning.text.files import load_text_config, load_text_encoder, save_text_encoder
from ldm.conditioning.text.tokenizer_files import load_tokenizer, save_tokenizer
from ldm.conditioning.text.tokenizers import Tokenizer
from ldm.config.diffusion import DiffusionConfig
from ldm.errors import UserError
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.autoencoder.identity import identity_config
from ldm.models.unet.unet import UNet
from ldm.storage.fields import load_fields
from ldm.storage.store import save_json
from ldm.storage.weights import SHARD_SIZE


def load_scheduler(folder: str | Path) -> DiffusionConfig:
    """Schedule and prediction out of a scheduler's folder; UserError if it asks for what we do not have."""
    path = Path(folder) / "scheduler_config.json"
    return scheduler_from_fields(load_fields(path), path)


def save_scheduler(diffusion: DiffusionConfig, folder: str | Path) -> None:
    """Write schedule and prediction as a scheduler's folder; UserError for what no scheduler of diffusers has."""
    save_json(Path(folder) / "scheduler_config.json", scheduler_to_fields(diffusion))


def load_pipeline(folder: str | Path, dtype: torch.dtype = torch.float32) -> Parts:
    """All parts of a pipeline, on the CPU and in evaluation mode; UserError if it is not whole or not of our kinds."""
    folder = Path(folder)
    path = folder / "model_index.json"
    if not path.is_file() and (folder / "vae").is_dir():
        raise UserError(f"{folder} holds an autoencoder but no whole pipeline: train a U-Net on it with ldm train-unet")
    index = load_fields(path)
    layout, kinds = read_index(index, path)
    places = {part: folder / name for part, name in layout.folders.items() if part in kinds}
    text_encoder, tokenizer = _load_text(layout, places, "", dtype)
    text_encoder_2, tokenizer_2 = _load_text(layout, places, "_2", dtype)
    unet, diffusion = UNet.from_pretrained(places["unet"], dtype), load_scheduler(places["scheduler"])
    autoencoder = (
        Autoencoder.from_pretrained(places["autoencoder"], dtype)
        if "autoencoder" in places
        else _pixels(unet, diffusion)
    )
    spatial = load_spatial(places["spatial"], dtype) if "spatial" in places else None
    if layout.joins is not None:
        spatial = spatial_of_class(layout.joins, unet.config, autoencoder.config)
    names, empty = read_class_facts(index, path)
    parts = Parts(
        autoencoder,
        unet,
        text_encoder,
        tokenizer,
        diffusion,
        text_encoder_2,
        tokenizer_2,
        load_class_embedder(places["classes"], dtype) if "classes" in places else None,
        load_image_encoder(places["image_encoder"], dtype) if "image_encoder" in places else None,
        spatial,
        bool(index.get(ZEROS, layout.fields.get(ZEROS, (False,))[0])),
        names,
        empty,
    )
    _check_kinds(parts, kinds, layout, path)
    check_fit(parts, folder)
    return parts


def _pixels(unet: UNet, diffusion: DiffusionConfig) -> Autoencoder:
    """The identity, for a U-Net that works on pixels."""
    channels = unet.config.out_channels // (2 if diffusion.learned_variance else 1)
    return Autoencoder(identity_config(channels, unet.config.sample_size)).eval()


def _load_text(
    layout: Layout, places: dict[str, Path], end: str, dtype: torch.dtype
) -> tuple[TextEncoder | None, Tokenizer | None]:
    part, folder = f"text_encoder{end}", places.get(f"text_encoder{end}")
    if folder is None:
        return None, None
    config = layout.text_config(part, load_text_config(folder))
    length = layout.texts.get(part, {}).get("max_length")
    return load_text_encoder(folder, dtype, config), load_tokenizer(places[f"tokenizer{end}"], length)


def _check_kinds(parts: Parts, kinds: dict[str, Kind], layout: Layout, where: Path) -> None:
    """Raise UserError where a network's folder holds another class than the index says."""
    for part, (_, name) in network_kinds(parts).items():
        if part in kinds and name != kinds[part][1]:
            raise UserError(f"{where}: the part {layout.folders[part]} is {kinds[part][1]}, its folder holds {name}")


def save_pipeline(
    parts: Parts, folder: str | Path, dtype: torch.dtype | None = None, shard_size: int = SHARD_SIZE
) -> None:
    """Write all parts, weights as `dtype` if given; `model_index.json` is removed first and written last.

    Raises UserError, before anything is written, for what the format cannot express.
    """
    folder = Path(folder)
    index = make_index(parts)
    parts.unet.to_fields(parts.unet.config)
    scheduler_to_fields(parts.diffusion)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").unlink(missing_ok=True)
    places = {part: folder / name for part, name in LAYOUTS[index["_class_name"]].folders.items()}
    if "autoencoder" in network_kinds(parts):
        parts.autoencoder.save_pretrained(places["autoencoder"], dtype, shard_size)
    parts.unet.save_pretrained(places["unet"], dtype, shard_size)
    for (encoder, tokenizer), end in zip(parts.texts, ("", "_2"), strict=False):
        save_text_encoder(encoder, places[f"text_encoder{end}"], dtype, shard_size)
        save_tokenizer(tokenizer, places[f"tokenizer{end}"])
    if parts.classes is not None:
        save_class_embedder(parts.classes, places["classes"], dtype)
    if parts.image_encoder is not None:
        save_image_encoder(parts.image_encoder, places["image_encoder"], dtype, places.get("processor"))
    if parts.spatial is not None and "spatial" in places:
        save_spatial(parts.spatial, places["spatial"], dtype)
    save_scheduler(parts.diffusion, places["scheduler"])
    save_json(folder / "model_index.json", index)
