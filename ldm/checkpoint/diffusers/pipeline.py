"""Whole pipelines in diffusers' layout."""

from __future__ import annotations

from pathlib import Path

import torch

from ldm.checkpoint.diffusers.layouts import LAYOUTS, folders_of, make_index, network_parts, read_index
from ldm.checkpoint.diffusers.scheduler_fields import scheduler_from_fields, scheduler_to_fields
from ldm.checkpoint.families import unsupported_folder
from ldm.checkpoint.pipeline import Pipeline
from ldm.conditioning.base import StoredPipeline
from ldm.conditioning.fit import all_conditionings
from ldm.conditioning.unconditional import Unconditional
from ldm.config.diffusion import DiffusionConfig
from ldm.errors import UserError
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.autoencoder.identity import identity_config
from ldm.models.denoiser import DenoiserNetwork
from ldm.registry import DENOISERS
from ldm.storage.fields import load_fields
from ldm.storage.store import save_json
from ldm.storage.weights import SHARD_SIZE


def load_scheduler(folder: str | Path) -> DiffusionConfig:
    """Read schedule and prediction from a scheduler's folder.

    Raises:
        UserError: if it is not supported.
    """
    path = Path(folder) / "scheduler_config.json"
    return scheduler_from_fields(load_fields(path), path)


def save_scheduler(diffusion: DiffusionConfig, folder: str | Path) -> None:
    """Write schedule and prediction as a scheduler's folder.

    Raises:
        UserError: if no scheduler of diffusers has them.
    """
    save_json(Path(folder) / "scheduler_config.json", scheduler_to_fields(diffusion))


def load_pipeline(folder: str | Path, dtype: torch.dtype = torch.float32) -> Pipeline:
    """Load a pipeline to the CPU, in evaluation mode.

    Raises:
        UserError: if it is incomplete or of a class that is not supported.
    """
    folder = Path(folder)
    path = folder / "model_index.json"
    if not path.is_file() and (folder / "vae").is_dir():
        raise UserError(f"{folder} holds an autoencoder but no pipeline: train a U-Net on it with ldm train-unet")
    if not path.is_file() and (error := unsupported_folder(folder)) is not None:
        raise error
    layout, parts, places, index = read_index(load_fields(path), path)
    network = next(each for each in DENOISERS.values() if parts["unet"] in each.parts())
    denoiser, diffusion = network.from_pretrained(places["unet"], dtype), load_scheduler(places["scheduler"])
    if "autoencoder" in places:
        autoencoder = Autoencoder.from_pretrained(places["autoencoder"], dtype, layout.statistics)
    else:
        autoencoder = _pixel_space(denoiser, diffusion)
    stored = StoredPipeline(places, index, layout.options, denoiser.config, autoencoder.config, layout.implied, dtype)
    loaded = [each.load(stored) for each in all_conditionings() if each is not Unconditional]
    found = [each for each in loaded if each is not None] or [Unconditional()]
    pipeline = Pipeline(autoencoder, denoiser, diffusion, {each.name: each for each in found})
    for part, (_, name) in network_parts(pipeline).items():
        is_network = part == "unet" or part in pipeline.modules  # tokenizers have several equal classes
        if is_network and part in parts and name != parts[part][1]:
            raise UserError(f"{path} says that {places[part].name} is {parts[part][1]}, but its folder holds {name}")
    pipeline.check(folder)
    return pipeline


def _pixel_space(denoiser: DenoiserNetwork, diffusion: DiffusionConfig) -> Autoencoder:
    """Create the identity, for a denoiser that works on pixels."""
    channels = denoiser.config.out_channels // (2 if diffusion.learned_variance else 1)
    return Autoencoder(identity_config(channels, denoiser.config.sample_size)).eval()


def save_pipeline(
    pipeline: Pipeline, folder: str | Path, dtype: torch.dtype | None = None, shard_size: int = SHARD_SIZE
) -> None:
    """Write a pipeline, weights as `dtype` if given; `model_index.json` is removed first and written last.

    Raises:
        UserError: before anything is written, if the format cannot express the pipeline.
    """
    folder = Path(folder)
    index, parts = make_index(pipeline), network_parts(pipeline)
    pipeline.denoiser.to_fields(pipeline.denoiser.config)
    scheduler_to_fields(pipeline.diffusion)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").unlink(missing_ok=True)
    folders = folders_of(LAYOUTS[index["_class_name"]], parts)
    places = {part: folder / name for part, name in folders.items()}
    if "autoencoder" in parts:
        pipeline.autoencoder.save_pretrained(places["autoencoder"], dtype, shard_size)
    pipeline.denoiser.save_pretrained(places["unet"], dtype, shard_size)
    for conditioning in pipeline.conditionings.values():
        conditioning.save(places, dtype, shard_size)
    save_scheduler(pipeline.diffusion, folder / "scheduler")
    save_json(folder / "model_index.json", index)
