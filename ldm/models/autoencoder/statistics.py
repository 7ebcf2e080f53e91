"""Latent statistics as other code knows them: a single scaling factor, with the rest folded into the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldm.models.autoencoder.config import AutoencoderConfig


def fold_statistics(
    config: AutoencoderConfig, tensors: dict[str, Tensor]
) -> tuple[AutoencoderConfig, dict[str, Tensor]]:
    """The same latents and images with a single scaling factor s, all that diffusers' pipelines know.

    With ratios r_c = s_c / s, the encoder's last layer gives z' = (z - shift_c) r_c; the decoder's first layer undoes
    it, z = z' / r_c + shift_c.
    """
    scaling = config.scaling_factor
    if not isinstance(scaling, tuple) and not config.shift_factor:
        return config, tensors
    channels = config.latent_channels
    scales = scaling if isinstance(scaling, tuple) else (1.0 if scaling is None else scaling,) * channels
    common = math.exp(sum(math.log(s) for s in scales) / channels) if isinstance(scaling, tuple) else scales[0]
    ratios = torch.tensor(scales, dtype=torch.float64) / common
    shifts = torch.tensor(config.shift_factor or 0.0, dtype=torch.float64).expand(channels)

    given = {name: tensors[name].double().cpu() for name in tensors if name.split(".")[0] in FOLDED}
    folded = FOLD_ENCODER[config.kind](given, ratios, shifts) | _fold_decoder(given, ratios, shifts)
    folded = {name: tensor.to(tensors[name].dtype) for name, tensor in folded.items()}
    update = {"scaling_factor": None if scaling is None else common, "shift_factor": None}
    return config.model_copy(update=update), tensors | folded


FOLDED = ("quant_conv", "quantize", "post_quant_conv")


def _fold_kl_encoder(given: dict[str, Tensor], ratios: Tensor, shifts: Tensor) -> dict[str, Tensor]:
    """Means like z; log-variance' = log-variance + 2 log r_c."""
    mean, log_variance = given["quant_conv.bias"].chunk(2)
    return {
        "quant_conv.weight": given["quant_conv.weight"]
        * torch.cat([ratios, ratios.new_ones(len(ratios))])[:, None, None, None],
        "quant_conv.bias": torch.cat([(mean - shifts) * ratios, log_variance + 2 * ratios.log()]),
    }


def _fold_vq_encoder(given: dict[str, Tensor], ratios: Tensor, shifts: Tensor) -> dict[str, Tensor]:
    """The codebook moves along with z, so that the nearest vector stays the nearest.

    Of ratios this would be true only if they were equal, as they are: a configuration of kind vq has one factor.
    """
    return {
        "quant_conv.bias": given["quant_conv.bias"] - shifts,
        "quantize.embedding.weight": given["quantize.embedding.weight"] - shifts,
    }


FOLD_ENCODER = {"kl": _fold_kl_encoder, "vq": _fold_vq_encoder}


def _fold_decoder(given: dict[str, Tensor], ratios: Tensor, shifts: Tensor) -> dict[str, Tensor]:
    weight, bias = given["post_quant_conv.weight"], given["post_quant_conv.bias"]
    return {
        "post_quant_conv.weight": weight / ratios[None, :, None, None],
        "post_quant_conv.bias": bias + weight[:, :, 0, 0] @ shifts,
    }
