"""Tiled encoding and decoding: images of any size in bounded memory, with blended overlaps.

Group normalization makes tiles differ from the whole image: the statistics of one tile change its brightness and
contrast, which leaves seams. Here all tiles are normalized by the statistics of the whole image, measured in a first
pass over the tiles. During that pass all norms but the first depend on statistics of single tiles; each further pass
makes more of them exact. One pass is enough to hide the seams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.errors import UserError
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.autoencoder.distribution import LatentDistribution, unscale
from ldm.models.precision import require_finite

BATCH_POSITIONS = 2**16  # latent positions in a batch
WHOLE = 2**14  # latent positions up to which the coarsest level, with its attention, is computed at once
SMALLEST = 16  # side of a tile, latent positions


@dataclass(frozen=True)
class Tiling:
    """How images are divided into tiles, in latent positions."""

    size: int = 64  # side of a tile
    overlap: int = 16  # of adjacent tiles
    passes: int = 1  # to measure the statistics of the norms; 0: each tile uses its own

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.size or self.passes < 0:
            raise ValueError(f"invalid tiling: size {self.size}, overlap {self.overlap}, passes {self.passes}")


class Span(NamedTuple):
    """A tile along one side: its ends, and the ends of the part to which no other tile is nearer."""

    start: int
    stop: int
    own_start: int
    own_stop: int


def spans(length: int, tiling: Tiling) -> list[Span]:
    """Return the tiles along a side of `length` positions; the last one is moved back to end with the side."""
    if length <= tiling.size:
        return [Span(0, length, 0, length)]
    starts = [*range(0, length - tiling.size, tiling.size - tiling.overlap), length - tiling.size]
    stops = [start + tiling.size for start in starts]
    borders = [0, *((stop + start) // 2 for stop, start in zip(stops, starts[1:], strict=False)), length]
    return [Span(*edges) for edges in zip(starts, stops, borders, borders[1:], strict=False)]


def tiling_of(autoencoder: Autoencoder, positions: int, tile: int | None) -> Tiling | None:
    """Return the tiling of images with a number of latent positions, or None to process them at once.

    Args:
        autoencoder: The autoencoder to use.
        positions: Latent positions of an image.
        tile: Side of a tile in pixels; 0 for no tiles, None for tiles of the default size if images are large.

    Raises:
        UserError: if the side is not a multiple of the downsampling factor or too small.
    """
    if autoencoder.config.is_pixel_space:
        if tile:
            raise UserError(f"tile is {tile}, but this model works on pixels and has no autoencoder: remove it")
        return None
    if tile is None:
        return Tiling() if positions > WHOLE else None
    if tile == 0:
        return None
    factor = autoencoder.config.downsampling_factor
    if tile < SMALLEST * factor or tile % factor:
        raise UserError(
            f"tile is {tile}: with this autoencoder it must be a multiple of {factor} and at least {SMALLEST * factor} "
            "pixels, or 0 for no tiles"
        )
    return Tiling(tile // factor, tile // factor // 4)


@torch.inference_mode()
def encode(autoencoder: Autoencoder, images: Tensor, tile: int | None = None) -> LatentDistribution:
    """Encode images (B, 3, H, W) in small batches, large ones in tiles; for `tile` see `tiling_of`.

    Raises:
        NonFiniteError: if the output is not finite.
    """
    positions = images[0, 0].numel() // autoencoder.config.downsampling_factor**2
    tiling = tiling_of(autoencoder, positions, tile)
    one = autoencoder.encode if tiling is None else partial(encode_tiled, autoencoder, tiling=tiling)
    parts = [one(part).moments for part in images.split(max(1, BATCH_POSITIONS // positions))]
    moments = require_finite(torch.cat(parts), "the autoencoder's encoder", autoencoder.dtype)
    return autoencoder.posterior(moments)


@torch.inference_mode()
def decode(autoencoder: Autoencoder, latents: Tensor, tile: int | None = None) -> Tensor:
    """Decode latents (B, C, h, w) in small batches, large ones in tiles; for `tile` see `tiling_of`.

    Raises:
        NonFiniteError: if the output is not finite.
    """
    positions = latents[0, 0].numel()
    tiling = tiling_of(autoencoder, positions, tile)
    one = autoencoder.decode if tiling is None else partial(decode_tiled, autoencoder, tiling=tiling)
    parts = [one(part) for part in latents.split(max(1, BATCH_POSITIONS // positions))]
    return require_finite(torch.cat(parts), "the autoencoder's decoder", autoencoder.dtype)


@torch.inference_mode()
def encode_tiled(autoencoder: Autoencoder, images: Tensor, tiling: Tiling | None = None) -> LatentDistribution:
    """Encode images (B, 3, H, W) in tiles."""
    encoder, factor = autoencoder.encoder, autoencoder.config.downsampling_factor

    def fine(tile: Tensor) -> Tensor:
        h = encoder.conv_in(tile.to(autoencoder.dtype))
        for block in encoder.down_blocks:
            h = block(h)
        return h

    def coarse(h: Tensor) -> Tensor:
        h = encoder.mid_block(h)
        return autoencoder.quant_conv(encoder.conv_out(F.silu(encoder.conv_norm_out(h))))

    positions = (images.shape[2] // factor) * (images.shape[3] // factor)
    over_tiles = _OverTiles(encoder, tiling or Tiling(), inputs=factor, outputs=1)
    if positions <= WHOLE:
        return autoencoder.posterior(coarse(over_tiles(fine, images)))
    return autoencoder.posterior(over_tiles(lambda tile: coarse(fine(tile)), images))


@torch.inference_mode()
def decode_tiled(autoencoder: Autoencoder, latents: Tensor, tiling: Tiling | None = None) -> Tensor:
    """Decode latents (B, C, h, w) in tiles."""
    decoder, factor = autoencoder.decoder, autoencoder.config.downsampling_factor

    def coarse(z: Tensor) -> Tensor:
        return decoder.mid_block(decoder.conv_in(autoencoder.post_quant_conv(z.to(autoencoder.dtype))))

    def fine(h: Tensor) -> Tensor:
        for block in decoder.up_blocks:
            h = block(h)
        return decoder.conv_out(F.silu(decoder.conv_norm_out(h)))

    z = unscale(latents, autoencoder.config)
    z = autoencoder.quantize(z)
    over_tiles = _OverTiles(decoder, tiling or Tiling(), inputs=1, outputs=factor)
    if z.shape[2] * z.shape[3] <= WHOLE:
        return over_tiles(fine, coarse(z))
    return over_tiles(lambda tile: fine(coarse(tile)), z)


class _OverTiles:
    """Apply functions of feature maps tile by tile."""

    def __init__(self, network: nn.Module, tiling: Tiling, inputs: int, outputs: int) -> None:
        self.tiling, self.inputs, self.outputs = tiling, inputs, outputs  # values per latent position, along a side
        self.norms = SharedNorms(network)

    def __call__(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Apply a function to x (B, C, H, W) and return one blended map."""
        rows, columns = (spans(side // self.inputs, self.tiling) for side in x.shape[2:])
        tiles = list(product(rows, columns))
        if len(tiles) == 1:
            return function(x)
        with self.norms.installed():
            for _ in range(self.tiling.passes):
                for row, column in tiles:
                    self.norms.measure(row, column)
                    function(self._cut(x, row, column))
                self.norms.conclude()
            return self._blended(function, x, rows, columns)

    def _cut(self, x: Tensor, row: Span, column: Span) -> Tensor:
        (top, bottom), (left, right) = ((self.inputs * at for at in span[:2]) for span in (row, column))
        return x[:, :, top:bottom, left:right]

    def _blended(
        self, function: Callable[[Tensor], Tensor], x: Tensor, rows: list[Span], columns: list[Span]
    ) -> Tensor:
        down, across = (self._weights(side, x) for side in (rows, columns))
        out: Tensor | None = None
        for (row, vertical), (column, horizontal) in product(
            zip(rows, down, strict=True), zip(columns, across, strict=True)
        ):
            tile = function(self._cut(x, row, column))
            if out is None:
                out = tile.new_zeros(*tile.shape[:2], rows[-1].stop * self.outputs, columns[-1].stop * self.outputs)
            (top, bottom), (left, right) = ((self.outputs * at for at in span[:2]) for span in (row, column))
            weight = vertical.to(tile)[:, None] * horizontal.to(tile)
            out[:, :, top:bottom, left:right] += tile.mul_(weight)
        assert out is not None
        return out

    def _weights(self, side: list[Span], like: Tensor) -> list[Tensor]:
        """Return the blending weights of each tile's rows: they fall in overlaps and sum to one at each position."""
        total = torch.zeros(side[-1].stop * self.outputs, device=like.device)
        found = []
        for number, (start, stop, *_) in enumerate(side):
            places = (torch.arange(self.outputs * (stop - start), device=like.device) + 0.5) / self.outputs
            weight = torch.ones_like(places)
            if number > 0:
                weight = torch.minimum(weight, _rise(places / (side[number - 1].stop - start)))
            if number < len(side) - 1:
                weight = torch.minimum(weight, _rise(places.flip(0) / (stop - side[number + 1].start)))
            found.append(weight)
            total[self.outputs * start : self.outputs * stop] += weight
        ends = ((self.outputs * span.start, self.outputs * span.stop) for span in side)
        return [weight / total[start:stop] for weight, (start, stop) in zip(found, ends, strict=True)]


def _rise(share: Tensor) -> Tensor:
    """Return the weights at fractions of an overlap: 0 in its outer quarter, where the tile's border has effects."""
    return (2 * share - 0.5).clamp(0, 1)


class SharedNorms:
    """Group norms that normalize each tile by the statistics of all tiles together."""

    def __init__(self, network: nn.Module) -> None:
        self.norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
        self._tile: tuple[Span, Span] | None = None
        self._sums: dict[nn.GroupNorm, Tensor] = {}  # of values, squares and counts, (3, B, groups), float64
        self._affine: dict[nn.GroupNorm, tuple[Tensor, Tensor]] = {}  # gain and offset, (B, C, 1, 1) each

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Replace the forward method of the norms within this context."""
        for norm in self.norms:
            norm.forward = partial(self._normalize, norm)
        try:
            yield
        finally:
            for norm in self.norms:
                del norm.forward

    def measure(self, row: Span, column: Span) -> None:
        """Add the statistics of a tile, which is computed next, without what is nearer to other tiles."""
        self._tile = row, column

    def conclude(self) -> None:
        """Use the measured statistics from now on."""
        for norm, sums in self._sums.items():
            mean, square, _ = sums / sums[2]  # (B, groups) each
            scale = (square - mean.square() + norm.eps).rsqrt()
            width = norm.num_channels // norm.num_groups
            scale, mean = (value.repeat_interleave(width, dim=1) for value in (scale, mean))  # (B, C)
            gain = scale * norm.weight
            offset = norm.bias - mean * gain
            self._affine[norm] = gain[:, :, None, None], offset[:, :, None, None]
        self._sums, self._tile = {}, None

    def _normalize(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        if self._tile is not None:
            self._add(norm, x, *self._tile)
        if norm not in self._affine:
            return F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
        gain, offset = self._affine[norm]
        return torch.addcmul(offset.to(x.dtype), x, gain.to(x.dtype))

    def _add(self, norm: nn.GroupNorm, x: Tensor, row: Span, column: Span) -> None:
        tall, wide = x.shape[2] // (row.stop - row.start), x.shape[3] // (column.stop - column.start)
        own = x[
            :,
            :,
            tall * (row.own_start - row.start) : tall * (row.own_stop - row.start),
            wide * (column.own_start - column.start) : wide * (column.own_stop - column.start),
        ]
        groups = own.unflatten(1, (norm.num_groups, -1)).flatten(2)  # (B, groups, values)
        variance, mean = torch.var_mean(groups.float(), dim=2, correction=0)
        variance, mean = variance.double(), mean.double()
        sums = groups.shape[2] * torch.stack([mean, variance + mean.square(), torch.ones_like(mean)])
        self._sums[norm] = self._sums[norm] + sums if norm in self._sums else sums
