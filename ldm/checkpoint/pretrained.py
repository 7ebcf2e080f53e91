"""The U-Net with `from_pretrained` and `save_pretrained`, which `from ldm import UNet` gives."""

from __future__ import annotations

from pathlib import Path

import torch

from ldm.checkpoint.diffusers.networks import read_unet, write_unet
from ldm.models.unet import unet


class UNet(unet.UNet):
    """A U-Net that knows its folder's layout, that of diffusers' UNet2DConditionModel or UNet2DModel."""

    @classmethod
    def from_pretrained(cls, path: str | Path, dtype: torch.dtype = torch.float32) -> UNet:
        """Load a folder such as `runs/mine/unet`; UserError if it is not whole or asks for what we do not have."""
        return read_unet(cls, Path(path), dtype)

    def save_pretrained(self, path: str | Path) -> None:
        """Write it to a folder."""
        write_unet(self, Path(path))
