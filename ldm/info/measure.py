"""Measure the latent statistics of an autoencoder on other data (Rombach et al. 2022, appendix G)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldm.checkpoint.find import find_autoencoder
from ldm.config.data import DataConfig
from ldm.data.sources import open_source
from ldm.errors import UserError
from ldm.info.describe import Description
from ldm.info.headers import read_folder
from ldm.info.report import latent_statistics
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.storage.weights import DTYPES
from ldm.training.latents import channel_statistics


def measure(description: Description, data: str, images: int, write: bool) -> dict[str, Any]:
    """Measure the statistics over the first images of `data`, with all processes.

    Args:
        write: whether to store them in the autoencoder's folder.

    Raises:
        UserError: if the target is not a folder with an autoencoder, or if `write` would change the latents below a
            U-Net that was trained on them.
    """
    from accelerate import Accelerator

    if description.kind in ("configuration", "single file") or "autoencoder" not in (description.stored or {}):
        raise UserError(
            f"--measure needs the folder of an autoencoder, not the {description.kind} {description.target}"
        )
    folder = find_autoencoder(description.target)
    if write:
        _check_no_unet(folder)
    autoencoder = Autoencoder.from_pretrained(folder).eval()
    before, size = latent_statistics(autoencoder.config), autoencoder.config.sample_size
    accelerator = Accelerator()
    with accelerator.main_process_first():  # which renders or downloads the data
        source = open_source(data, DataConfig(size=size, scenes={"num": images}))
    means, deviations = channel_statistics(autoencoder.to(accelerator.device), source, size, images, accelerator)
    autoencoder.set_statistics(means, deviations)
    if write and accelerator.is_main_process:
        stored = {header.dtype for header in read_folder(folder).values()}
        autoencoder.cpu().save_pretrained(folder, DTYPES.get(stored.pop()) if len(stored) == 1 else None)
    return {
        "data": data,
        "images": min(images, len(source)),
        "mean": means.tolist(),
        "std": deviations.tolist(),
        "before": before,
        "after": latent_statistics(autoencoder.config),
        "written": write,
    }


def _check_no_unet(folder: Path) -> None:
    if (unet := folder.parent / "unet").is_dir():
        raise UserError(
            f"the U-Net in {unet} was trained on latents with the old statistics: copy {folder} to a separate folder "
            "before --write"
        )
