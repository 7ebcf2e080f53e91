"""The VQ bottleneck: each position becomes the nearest vector of a codebook (van den Oord et al. 2017).

The autoencoder quantizes when it decodes, so the denoiser works on latents before quantization. Parameters are named
as in diffusers' `VQModel`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import model_validator
from torch import Tensor, nn

from ldm.config.section import Width
from ldm.models.autoencoder.bottleneck import Bottleneck
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.autoencoder.fields import SHARED_DEFAULTS
from ldm.models.precision import at_least_float32, full_precision
from ldm.storage.fields import Fields, Fixed

DISTANCES = 2**24  # computed at a time (64 MiB), so that memory stays bounded for images of any size


class VQConfig(AutoencoderConfig):
    """Options of a VQ autoencoder."""

    kind: Literal["vq"] = "vq"
    codebook_size: Width  # number of codebook vectors

    @model_validator(mode="after")
    def _check_statistics(self) -> VQConfig:
        if self.statistics == "channel" or isinstance(self.scaling_factor, tuple):
            raise ValueError(
                "kind vq needs statistics tensor and one scaling_factor: scaling each channel would change which "
                "codebook vector is nearest, and diffusers' VQModel has no field for it"
            )
        return self


class Quantizer(nn.Module):
    """A codebook of `size` vectors of `channels` values."""

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, channels)
        nn.init.uniform_(self.embedding.weight, -1 / size, 1 / size)

    def forward(self, z: Tensor) -> Tensor:
        """Replace z (B, C, h, w) by the nearest codebook vectors, in at least float32.

        The straight-through gradient reaches z but not the codebook (van den Oord et al. 2017, section 3.2).
        """
        return self.lookup(self.indices(z)).detach() + (z - z.detach())

    @torch.no_grad()
    def indices(self, z: Tensor) -> Tensor:
        """Return the indices (B, h, w) of the codebook vectors nearest to z (B, C, h, w)."""
        flat = z.permute(0, 2, 3, 1).flatten(0, 2)  # (Bhw, C)
        return nearest(flat, self.embedding.weight).view(z.shape[0], *z.shape[2:])

    def lookup(self, indices: Tensor) -> Tensor:
        """Return the codebook vectors (B, C, h, w) of indices (B, h, w)."""
        return at_least_float32(self.embedding(indices)).permute(0, 3, 1, 2)


def nearest(points: Tensor, codebook: Tensor) -> Tensor:
    """Return the index (N,) of the codebook row (K, C) nearest to each point (N, C), the first of equally near ones.

    Compares |p - e|^2 without |p|^2, which is the same for all e. Both are centred at the codebook's mean and at least
    float32, which reduces cancellation.
    """
    points, codebook = at_least_float32(points), at_least_float32(codebook)
    centre = codebook.mean(0)
    codebook = codebook - centre
    halves = 0.5 * codebook.square().sum(1)  # (K,)
    rows = max(1, DISTANCES // len(codebook))
    with full_precision(points.device):
        return torch.cat([(halves - (part - centre) @ codebook.t()).argmin(1) for part in points.split(rows)])


class VQBottleneck(Bottleneck):
    """The VQ bottleneck of diffusers' `VQModel`: the decoder receives the nearest codebook vectors."""

    section = VQConfig
    has_codebook = True
    diffusers_class = "VQModel"
    diffusers_defaults = SHARED_DEFAULTS | {
        "latent_channels": 3,
        "vq_embed_dim": None,
        "num_vq_embeddings": 256,
        "force_upcast": False,
    }
    diffusers_fixed: ClassVar[Fixed] = {
        "act_fn": ("silu", "swish"),
        "norm_type": ("group",),
        "lookup_from_codebook": (False,),
    }
    compvis_classes = ("VQModel", "VQModelInterface")
    compvis_options: ClassVar[dict[str, str]] = {"n_embed": "codebook_size"}

    @classmethod
    def networks(cls, config: AutoencoderConfig) -> dict[str, nn.Module]:
        """Return the modules with the codebook."""
        size = cast(VQConfig, config).codebook_size
        return super().networks(config) | {"quantize": Quantizer(size, config.latent_channels)}

    @classmethod
    def channels_to_diffusers(cls, config: AutoencoderConfig) -> Fields:
        """Return the fields of the codebook; `latent_channels` is the width of the encoder's output there."""
        return {
            "latent_channels": config.z_width,
            "vq_embed_dim": config.latent_channels,
            "num_vq_embeddings": cast(VQConfig, config).codebook_size,
        }

    @classmethod
    def channels_from_diffusers(cls, fields: Fields) -> dict[str, Any]:
        """Return our options for these fields."""
        width, inner = fields["vq_embed_dim"], fields["latent_channels"]
        return {
            "latent_channels": inner if width is None else width,
            "z_channels": inner,
            "codebook_size": fields["num_vq_embeddings"],
        }

    @classmethod
    def fold_encoder(cls, tensors: dict[str, Tensor], ratios: Tensor, shifts: Tensor) -> dict[str, Tensor]:
        """Shift the codebook with z, so that the nearest vector stays the nearest; all ratios are 1."""
        return {
            "quant_conv.bias": tensors["quant_conv.bias"] - shifts,
            "quantize.embedding.weight": tensors["quantize.embedding.weight"] - shifts,
        }
