"""Patch discriminator (Isola et al. 2017)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from ldm.config.section import Depth, Section, Width
from ldm.models.precision import at_least_float32, full_precision


class DiscriminatorConfig(Section):
    """Options of the patch discriminator."""

    discriminator_layers: Depth = 3
    discriminator_channels: Width = 64
    discriminator_norm: Literal["batch", "group", "spectral", "none"] = "batch"


class PatchDiscriminator(nn.Module):
    """Classify overlapping patches as real (positive logits) or reconstructed (Isola et al. 2017, section 6.1.2).

    The first convolution has no normalization. Widths double with each layer up to eight times the first; with three
    layers a logit depends on 70 x 70 pixels. Spectral normalization applies to the weights of all convolutions (Miyato
    et al. 2018).
    """

    def __init__(self, config: DiscriminatorConfig, in_channels: int = 3) -> None:
        super().__init__()
        base, layers = config.discriminator_channels, config.discriminator_layers
        bias = config.discriminator_norm != "batch"  # batch normalization would cancel it
        widths = [base * min(2**layer, 8) for layer in range(layers + 1)]
        modules: list[nn.Module] = [nn.Conv2d(in_channels, base, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for layer in range(1, layers + 1):
            stride = 2 if layer < layers else 1
            modules += [
                nn.Conv2d(widths[layer - 1], widths[layer], 4, stride, padding=1, bias=bias),
                _normalization(config.discriminator_norm, widths[layer]),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*modules, nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.apply(_initialize)
        if config.discriminator_norm == "spectral":
            for layer in self.layers:
                if isinstance(layer, nn.Conv2d):
                    spectral_norm(layer)

    def forward(self, images: Tensor, penalized: int = 0) -> tuple[Tensor, Tensor]:
        """Return logits (B, 1, H', W') of images (B, 3, H, W) in [-1, 1], H' = H / 2**layers - 2, and penalties.

        The gradient penalties (penalized,) belong to the first `penalized` images. One pass computes both, since
        DistributedDataParallel allows one forward pass for each backward pass.
        """
        with parametrize.cached():  # one power iteration of a spectral norm, however often weights are read
            with full_precision(images.device):
                for layer in self.layers:
                    getattr(layer, "weight", None)
            return self.layers(images), self._penalties(images[:penalized])

    def _penalties(self, images: Tensor) -> Tensor:
        """Return |gradient of an image's logits|^2 with respect to the image, (B,), in at least float32.

        As in R1 (Mescheder et al. 2018, equation 9). A map's logits are summed and the result is divided by their
        number, so that it does not depend on the resolution.
        """
        if not len(images):
            return images.new_zeros(0)
        with full_precision(images.device):
            seen = at_least_float32(images.detach()).requires_grad_()
            logits = self.layers(seen)
            [gradient] = torch.autograd.grad(logits.sum(), seen, create_graph=True)
        return gradient.square().sum((1, 2, 3)) / logits[0].numel()


def _normalization(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(math.gcd(32, channels), channels)
    return nn.Identity()


def _initialize(module: nn.Module) -> None:
    """Initialize with std 0.02 around 0, or around 1 for normalization (Isola et al. 2017, section 6.2)."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
