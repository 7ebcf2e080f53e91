"""Small U-Nets of every kind with random weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm.models.denoiser import Added
from ldm.models.unet.config import UNetConfig
from ldm.models.unet.unet import UNet

CONFIG = UNetConfig(
    block_out_channels=(16, 24, 32),
    attention_layers=(0, 1, 2),
    num_attention_heads=4,
    norm_num_groups=4,
    cross_attention_dim=12,
    layers_per_block=1,
)
SMALL = {"block_out_channels": (16, 24, 32), "norm_num_groups": 4, "layers_per_block": 1}
PLAIN = {**SMALL, "attention": "plain", "cross_attention_dim": None, "num_attention_heads": 4}
CLASSES = torch.tensor([4, 0])
ADDED = Added(torch.randn(2, 5), torch.tensor([[64, 48, 0, 3, 64, 64], [32, 32, 1, 0, 64, 64]]))

# U-Nets of every kind with their classes and added conditions.
KINDS: dict[str, tuple[UNetConfig, Tensor | None, Added | None]] = {
    "transformer": (CONFIG, None, None),
    "table": (CONFIG.model_copy(update={"num_class_embeds": 5, "mid_attention_layers": 0}), CLASSES, None),
    "simple_projection": (
        CONFIG.model_copy(
            update={"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 3},
        ),
        torch.randn(2, 3),
        None,
    ),
    "text_time": (
        CONFIG.model_copy(
            update={
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 4,
                "projection_class_embeddings_input_dim": 29,
                "class_embed_type": "projection",
                "resnet_resampling": True,
                "time_scale_shift": True,
            }
        ),
        torch.randn(2, 29),
        ADDED,
    ),
    "plain": (UNetConfig(**PLAIN, attention_layers=(0, 1, 0), downsample_padding=0, freq_shift=1), None, None),
    "plain with ResNet resampling": (
        UNetConfig(
            **PLAIN,
            attention_layers=(1, 1, 1),
            resnet_resampling=(True, False, True),
            time_scale_shift=True,
            class_embed_type="timestep",
        ),
        CLASSES,
        None,
    ),
    "identity": (
        UNetConfig(**PLAIN, attention_layers=(0, 0, 0), class_embed_type="identity"),
        torch.randn(2, 64),
        None,
    ),
}


def randomised(config: UNetConfig) -> UNet:
    torch.manual_seed(0)
    unet = UNet(config).eval()
    for weight in unet.parameters():
        nn.init.normal_(weight, 0.0, 0.1)
    return unet


def random_context(config: UNetConfig) -> Tensor | None:
    return None if config.cross_attention_dim is None else torch.randn(2, 5, config.cross_attention_dim)
