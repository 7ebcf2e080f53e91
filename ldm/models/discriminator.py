"""The opponent of the autoencoder: a convolutional network that judges patches (Isola et al. 2017)."""

from __future__ import annotations

import math

from torch import Tensor, nn

from ldm.config import AdversarialLossConfig


class PatchDiscriminator(nn.Module):
    """A map of logits, each of one overlapping patch: real (positive) or reconstructed (Isola et al. 2017, 6.1.2).

    The first convolution has no normalisation; widths double from layer to layer up to eight times the first; with
    three layers a logit sees 70 x 70 pixels.
    """

    def __init__(self, config: AdversarialLossConfig, in_channels: int = 3) -> None:
        super().__init__()
        base, layers = config.discriminator_channels, config.discriminator_layers
        bias = config.discriminator_norm != "batch"  # batch normalisation would take it away again
        widths = [base * min(2**layer, 8) for layer in range(layers + 1)]
        modules: list[nn.Module] = [nn.Conv2d(in_channels, base, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for layer in range(1, layers + 1):
            stride = 2 if layer < layers else 1
            modules += [
                nn.Conv2d(widths[layer - 1], widths[layer], 4, stride, padding=1, bias=bias),
                _normalisation(config.discriminator_norm, widths[layer]),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*modules, nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.apply(_initialise)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] to logits (B, 1, H', W'); H' is H / 2**layers - 2."""
        return self.layers(pictures)


def _normalisation(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(math.gcd(32, channels), channels)
    return nn.Identity()


def _initialise(module: nn.Module) -> None:
    """Normal with a standard deviation of 0.02 around 0, or 1 for normalisation (Isola et al. 2017, 6.2)."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
