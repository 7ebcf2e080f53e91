"""The convolutional pieces that the autoencoder and the U-Net share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class BlockOptions:
    """What all ResNet blocks of a network have in common."""

    groups: int
    eps: float  # of the group normalisation: 1e-6 in autoencoders, 1e-5 in U-Nets
    time_channels: int | None = None  # width of the time embedding; None: the blocks know no time
    dropout: float = 0.0


class ResNetBlock(nn.Module):
    """x + f(x) with f two rounds of group norm, SiLU and 3x3 convolution (He et al. 2016; Ho et al. 2020, appendix B).

    The time embedding, projected by `time_emb_proj`, is added between the convolutions, the same at every position.
    """

    def __init__(self, in_channels: int, out_channels: int, options: BlockOptions) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(options.groups, in_channels, options.eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        if options.time_channels is not None:
            self.time_emb_proj = nn.Linear(options.time_channels, out_channels)
        self.norm2 = nn.GroupNorm(options.groups, out_channels, options.eps)
        self.dropout = nn.Dropout(options.dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """x (B, C, H, W) to (B, C', H, W); `shift` (B or 1, C') is the time embedding after `time_emb_proj`."""
        h = self.conv1(F.silu(self.norm1(x)))  # (B, C', H, W)
        if shift is not None:
            h = h + shift[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class Downsample(nn.Module):
    """Halves both sides with a strided 3x3 convolution.

    U-Nets pad all around, autoencoders at the right and the bottom only, as the published weights of each expect.
    """

    def __init__(self, channels: int, pad_all_around: bool) -> None:
        super().__init__()
        self.pad_all_around = pad_all_around
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1 if pad_all_around else 0)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) to (B, C, H / 2, W / 2)."""
        return self.conv(x if self.pad_all_around else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Repeats every position twice along both sides, then smooths with a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """x (B, C, H, W) to (B, C, 2H, 2W), or to `size` where halving an odd side has lost a row or a column."""
        size = size or (2 * x.shape[2], 2 * x.shape[3])
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
