"""What brings an image beside the latents <-> its folder, in a layout of our own."""

from __future__ import annotations

from pathlib import Path

import torch

from ldm.checkpoint.class_tables import STEM
from ldm.conditioning.spatial import Spatial, SpatialConfig, SpatialIdentity, SpatialRescaler, make_spatial
from ldm.config.section import parse
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.unet.config import UNetConfig
from ldm.storage.fields import DIFFUSERS_VERSION, Fields, expect_class, known_fields, load_fields
from ldm.storage.store import save_json
from ldm.storage.weights import build, load_weights, save_weights

PIXELS = 3  # channels of an image
MASK = 1  # of a mask


def load_spatial(folder: Path, dtype: torch.dtype = torch.float32) -> Spatial:
    """What brings an image beside the latents, out of a folder; UserError if it is not whole."""
    config = spatial_from_fields(load_fields(folder / "config.json"), folder / "config.json")
    tensors = load_weights(folder, STEM) if config.kind == "segmentation_map" else {}
    return build(lambda: make_spatial(config), tensors, dtype, folder)


def spatial_from_fields(fields: Fields, where: Path) -> SpatialConfig:
    """The configuration of what brings an image beside the latents; UserError names a field that cannot be had."""
    expect_class(fields, (SpatialRescaler.__name__, SpatialIdentity.__name__), where)
    known = known_fields(fields, SpatialConfig(kind="segmentation_map").model_dump(mode="json"), {}, where)
    return parse(known, SpatialConfig, str(where))


def save_spatial(spatial: Spatial, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write what brings an image beside the latents, its weights, if it has any, as `dtype` if given."""
    if tensors := spatial.state_dict():
        save_weights(folder, STEM, tensors, dtype)
    names = {"_class_name": type(spatial).__name__, "_diffusers_version": DIFFUSERS_VERSION}
    save_json(folder / "config.json", names | spatial.config.model_dump(mode="json"))


def spatial_of_class(kind: str, unet: UNetConfig, autoencoder: AutoencoderConfig) -> Spatial | None:
    """What a class of pipeline that says `kind` brings beside the latents; None where the U-Net has latents alone."""
    channels = unet.in_channels - autoencoder.latent_channels
    if channels < 1:
        return None
    inputs = PIXELS if kind == "low_resolution" else MASK
    tree = {"kind": kind, "in_channels": inputs, "channels": channels}
    return make_spatial(parse(tree, SpatialConfig, "spatial")).eval()
