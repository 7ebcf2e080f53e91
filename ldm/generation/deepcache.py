"""DeepCache: reuse deep features of the U-Net, which change slowly from step to step."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.diffusion.level import Grid
from ldm.models.attention import KeysValues
from ldm.models.unet.unet import UNet


class DeepCacheUNet:
    """A U-Net for one pass over a grid that computes deep features at every `every`-th level.

    This is DeepCache with equal intervals at its branch 1 (Ma, Fang and Wang 2024, sections 3.2 and 3.3): between those
    levels only the first convolution, the last ResNet block with its attention, and the output run. Features are
    reused by the position of a level in the grid, so samplers may call twice a step (a second call at the level where
    features were computed computes them again), and guidance may switch to another denoiser for some levels.
    """

    def __init__(self, unet: UNet, grid: Grid, every: int) -> None:
        self.unet, self.every = unet, every
        self._positions = {t: position for position, t in enumerate(grid.t.tolist())}
        self._cached: tuple[int, Tensor] | None = None  # a position in the grid and its features (B, C, h, w)

    def denoise(self, t: float, latents: Tensor, embedding: Tensor, projected: list[KeysValues]) -> Tensor:
        """Return `UNet.denoise`, exactly or at a timestep of the grid with features of an earlier level."""
        position = self._positions.get(t)
        if position is None:  # a call between two levels of the grid
            return self.unet.denoise(latents, embedding, projected)
        if self._cached is not None and 0 < position - self._cached[0] < self.every:
            return self._shallow(self._cached[1], latents, embedding, projected)
        unet = self.unet

        def keep(last: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            skip = unet.config.block_out_channels[0]  # channels, which follow the features
            self._cached = position, inputs[0][:, :-skip]

        hook = unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(keep)
        try:
            return unet.denoise(latents, embedding, projected)
        finally:
            hook.remove()

    def _shallow(self, deep: Tensor, latents: Tensor, embedding: Tensor, projected: list[KeysValues]) -> Tensor:
        unet, last = self.unet, self.unet.up_blocks[-1]
        skip = unet.conv_in(latents.to(unet.dtype))
        h = last.resnets[-1](torch.cat([deep, skip], dim=1), iter([embedding[:, -unet.shift_channels[-1] :]]))
        if last.attentions:
            h = last.attentions[-1](h, iter(projected[len(projected) - unet.config.attention_layers[0] :]))
        return unet.conv_out(F.silu(unet.conv_norm_out(h)))
