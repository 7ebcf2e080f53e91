"""3x3 convolutions by Winograd's minimal filtering, F(4x4, 3x3) (Lavin and Gray 2016), for float32 on a CPU.

A tile of 4x4 outputs takes 36 products instead of 144. The polynomials are evaluated at 0, +-1/sqrt(2), +-sqrt(2) and
infinity: the error is at most twice a direct sum's; the usual points 0, 1, -1, 2, -2 have three times this error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

TILE = 4  # outputs along a side
SEEN = 6  # inputs along a side
POINTS = (0.0, -math.sqrt(0.5), math.sqrt(0.5), -math.sqrt(2), math.sqrt(2))
WORK = 2**22  # values of transformed tiles that are processed at a time: they stay in the cache
FEW_TILES = 64  # tiles of a map up to which filters need more memory than tiles, and are processed in parts
TOGETHER = 256  # tiles of several such maps that are processed at a time
FILTERS = 128  # filters that are processed at a time
PAYS = {32 * 32: 128}  # positions of a map and channels, in and out, from which on this is faster
if torch.backends.cpu.get_cpu_capability() == "AVX512":
    PAYS[16 * 16] = 640  # a direct convolution waits for its weights; with other instructions this has 0.7 of its speed


def least_positions(weight: Tensor) -> float:
    """Return the positions H x W from which on this is faster for a weight (C', C, 3, 3), infinity if never."""
    channels = min(weight.shape[:2]) if weight.dtype == torch.float32 else 0
    return min((positions for positions, wide in PAYS.items() if channels >= wide), default=math.inf)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor | None = None) -> Tensor:
    """Convolve channels-last x (B, C, H, W), padded by 1, with a weight (C', C, 3, 3) and add `other` (B, C', H, W)."""
    batch, channels, height, width = x.shape
    down, across = -(-height // TILE), -(-width // TILE)
    out = x.new_empty(batch, TILE * down, TILE * across, len(weight))
    maps = x.permute(0, 2, 3, 1)
    if down * across <= FEW_TILES:
        together = max(1, TOGETHER // (down * across))
        for part, seen in zip(out.split(together), maps.split(together), strict=True):
            _fill(part, seen, 0, bias, partial(_filtered_by_parts, weight=weight))
    else:
        filtered = partial(torch.bmm, mat2=_filters(weight))
        rows = max(1, WORK // (SEEN**2 * across * max(channels, len(weight))))  # of tiles
        for image in range(batch):
            for top in range(0, TILE * down, TILE * rows):
                strip = out[image : image + 1, top : top + TILE * rows]
                _fill(strip, maps[image : image + 1], top, bias, filtered)
    out = out[:, :height, :width]
    if other is not None:
        out += other.permute(0, 2, 3, 1)
    return out.permute(0, 3, 1, 2)


def _filters(weight: Tensor) -> Tensor:
    """Transform a weight (C', C, 3, 3) to (36, C, C')."""
    made = _transforms()[1] @ weight.reshape(-1, 9).t()  # (36, C' * C)
    return made.view(SEEN**2, *weight.shape[:2]).transpose(1, 2)


def _filtered_by_parts(tiles: Tensor, weight: Tensor) -> Tensor:
    """Multiply transformed tiles (36, N, C) by filters, a part of them at a time: (36, N, C')."""
    return torch.cat([torch.bmm(tiles, _filters(part)) for part in weight.split(FILTERS)], dim=2)


def _fill(out: Tensor, x: Tensor, top: int, bias: Tensor | None, filtered: Callable[[Tensor], Tensor]) -> None:
    """Write the convolution of x (B, H, W, C) from row `top` on to `out` (B, 4 n, 4 m, C').

    `filtered` multiplies transformed tiles (36, N, C) by filters: (36, N, C').
    """
    (_, height, width, channels), (batch, tall, wide, outputs) = x.shape, out.shape
    down, across = tall // TILE, wide // TILE
    start, stop = max(top - 1, 0), min(top + tall + 1, height)
    edges = (1, wide + 1 - width, start - top + 1, top + tall + 1 - stop)
    padded = F.pad(x[:, start:stop], (0, 0, *edges))  # (B, 4 n + 2, 4 m + 2, C)
    whole, line, place, _ = padded.stride()
    tiles = padded.as_strided(
        (SEEN, SEEN, batch, down, across, channels), (line, place, whole, TILE * line, TILE * place, 1)
    ).reshape(SEEN**2, -1)  # (36, B * n * m * C)
    inputs, _, result = _transforms()
    products = filtered((inputs @ tiles).view(SEEN**2, -1, channels))  # (36, B * n * m, C')
    found = (result @ products.view(SEEN**2, -1)).view(TILE, TILE, batch, down, across, outputs)
    found, places = found.permute(2, 3, 0, 4, 1, 5), out.view(batch, down, TILE, across, TILE, outputs)
    if bias is None:
        places.copy_(found)
    else:
        torch.add(found, bias, out=places)


@cache
def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Return the matrices that transform tiles (36, 36), filters (36, 9) and products (16, 36), along both sides.

    Row i of the first holds the polynomial with all points but the i-th as roots; the others hold powers of the points
    (Lavin and Gray 2016, section 4). Powers of two are moved between them to keep magnitudes near 1.
    """
    points = torch.tensor(POINTS, dtype=torch.float64)
    inputs, filters = torch.zeros(SEEN, SEEN, dtype=torch.float64), torch.zeros(SEEN, 3, dtype=torch.float64)
    result = torch.zeros(TILE, SEEN, dtype=torch.float64)
    for i, point in enumerate(POINTS):
        others = torch.cat([points[:i], points[i + 1 :]])
        inputs[i, : TILE + 1] = _polynomial(others.tolist())
        filters[i] = point ** torch.arange(3.0, dtype=torch.float64) / (point - others).prod()
        result[:, i] = point ** torch.arange(4.0, dtype=torch.float64)
    inputs[-1] = _polynomial(list(POINTS))
    filters[-1, -1] = result[-1, -1] = 1.0
    sizes = [2.0 ** matrix.abs().amax(1).log2().round() for matrix in (inputs, filters)]
    inputs, filters = inputs / sizes[0][:, None], filters / sizes[1][:, None]
    result = result * sizes[0] * sizes[1]
    made = [torch.kron(matrix, matrix).float() for matrix in (inputs, filters, result)]
    return made[0], made[1], made[2]


def _polynomial(roots: list[float]) -> Tensor:
    """Return the coefficients of the product of (x - root), the constant first."""
    coefficients = torch.ones(1, dtype=torch.float64)
    for root in roots:
        coefficients = F.pad(coefficients, (1, 0)) - root * F.pad(coefficients, (0, 1))
    return coefficients
