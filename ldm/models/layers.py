"""Convolutional layers that the autoencoder and the U-Net share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat

from torch import Tensor, nn
from torch.nn import functional as F

Size = tuple[int, int]
Shifts = Iterator[Tensor | None]  # time embeddings after the `time_emb_proj` of each ResNet block, in running order

NOTHING: Iterator[None] = repeat(None)  # for networks without time or context


@dataclass(frozen=True)
class BlockOptions:
    """Options that all ResNet blocks of a network share."""

    groups: int
    eps: float  # of the group normalisation: 1e-6 in autoencoders, 1e-5 in U-Nets
    time_channels: int | None = None  # width of the time embedding; None: the blocks have none
    dropout: float = 0.0
    scale_shift: bool = False  # the time embedding scales and shifts after the second norm


def halve(x: Tensor, size: Size | None = None) -> Tensor:
    """Average 2x2 positions of x (B, C, H, W), fewer at the end of an odd side: (B, C, H / 2, W / 2), rounded up."""
    return F.avg_pool2d(x, 2, ceil_mode=True)


def enlarge(x: Tensor, size: Size | None = None) -> Tensor:
    """Repeat every position of x (B, C, H, W): (B, C, 2H, 2W), or a `size` close to that."""
    return F.interpolate(x, size=size or (2 * x.shape[2], 2 * x.shape[3]), mode="nearest")


class ResNetBlock(nn.Module):
    """x + f(x) with f two rounds of group norm, SiLU and 3x3 convolution (He et al. 2016; Ho et al. 2020, appendix B).

    The time embedding, projected by `time_emb_proj`, is added after the first convolution or, with `scale_shift`,
    scales and shifts the result of the second norm (adaptive normalisation, Dhariwal and Nichol 2021, section 3.1).
    """

    resample: Callable[[Tensor, Size | None], Tensor] | None = None  # x (B, C, H, W) and the result's size

    def __init__(self, in_channels: int, out_channels: int, options: BlockOptions) -> None:
        super().__init__()
        self.scale_shift = options.scale_shift
        self.norm1 = nn.GroupNorm(options.groups, in_channels, options.eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        if options.time_channels is not None:
            self.shift_channels = 2 * out_channels if options.scale_shift else out_channels
            self.time_emb_proj = nn.Linear(options.time_channels, self.shift_channels)
        self.norm2 = nn.GroupNorm(options.groups, out_channels, options.eps)
        self.dropout = nn.Dropout(options.dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, shifts: Shifts = NOTHING, size: Size | None = None) -> Tensor:
        """Map x (B, C, H, W) to (B, C', H, W) with the next of `shifts`, (B or 1, C' or 2C')."""
        return self.shifted(x, next(shifts), size)

    def shifted(self, x: Tensor, shift: Tensor | None, size: Size | None = None) -> Tensor:
        """Run `forward` with a given shift: a function of tensors only, which can be compiled."""
        h = F.silu(self.norm1(x))
        if self.resample is not None:
            x, h = self.resample(x, size), self.resample(h, size)
        h = self.conv1(h)  # (B, C', H, W)
        if shift is None:
            h = self.norm2(h)
        elif self.scale_shift:
            scale, shift = shift[:, :, None, None].chunk(2, dim=1)  # (B or 1, C', 1, 1) each
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + shift[:, :, None, None])
        h = self.conv2(self.dropout(F.silu(h)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class DownsampleResBlock(ResNetBlock):
    """A ResNet block that halves both sides by average pooling, in both branches."""

    resample = staticmethod(halve)


class UpsampleResBlock(ResNetBlock):
    """A ResNet block that doubles both sides, or enlarges to `size` like `Upsample`, in both branches."""

    resample = staticmethod(enlarge)


class Downsample(nn.Module):
    """Halves both sides with a strided 3x3 convolution.

    U-Nets pad all around; autoencoders and the U-Nets of Ho et al. (2020) at the right and the bottom only. Published
    weights expect this.
    """

    def __init__(self, channels: int, pad_all_around: bool) -> None:
        super().__init__()
        self.pad_all_around = pad_all_around
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1 if pad_all_around else 0)

    def forward(self, x: Tensor, shifts: object = None) -> Tensor:
        """Map x (B, C, H, W) to (B, C, H / 2, W / 2)."""
        return self.conv(x if self.pad_all_around else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles both sides by repeating positions, followed by a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, shifts: object = None, size: Size | None = None) -> Tensor:
        """Map x (B, C, H, W) to (B, C, 2H, 2W), or to `size` if the side before downsampling was odd."""
        return self.conv(enlarge(x, size))
