"""Deep features of one step in the next: what changes slowly from step to step is computed in a part of them."""

from __future__ import annotations

from torch import Tensor

from ldm.diffusion.level import Grid
from ldm.models.attention import KeysValues
from ldm.models.unet.unet import UNet


class DeepCacheUNet:
    """A U-Net on one walk along a grid, whose deep features serve the next `every` - 1 levels as well.

    That is DeepCache with equal intervals (Ma, Fang and Wang 2024, section 3.3). What counts is the place of a level in
    the grid. So samplers that call twice in a step need not be known (a second call at the level where features were
    computed computes its own), nor guidance that lets another denoiser stand in for a while.
    """

    def __init__(self, unet: UNet, grid: Grid, every: int) -> None:
        self.unet, self.every = unet, every
        self._places = {t: place for place, t in enumerate(grid.t.tolist())}
        self._kept: tuple[int, Tensor] | None = None  # a place in the grid, and the features computed there

    def denoise(self, t: float, latents: Tensor, embedding: Tensor, projected: list[KeysValues]) -> Tensor:
        """`UNet.denoise` at a time of the grid, exactly or with features of a level before."""
        place = self._places[t]
        known = self._known(place)
        output, deep = self.unet.denoise_with(known, latents, embedding, projected)
        if known is None:
            self._kept = place, deep
        return output

    def _known(self, place: int) -> Tensor | None:
        if self._kept is None:
            return None
        computed, features = self._kept
        return features if 0 < place - computed < self.every else None
