"""Stable Diffusion's published sizes: the networks that their `config.json` ask of diffusers and transformers."""

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ldm import config
from ldm.info.describe import of_config
from ldm.info.report import make_networks

VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
SD2 = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def clip(width: int, layers: int, heads: int, kind: type[nn.Module] = CLIPTextModel, **others: object) -> nn.Module:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return kind(CLIPTextConfig(**sizes, intermediate_size=4 * width, **others))


# Name of the configuration -> section -> what makes the oracle, and the number that its model card or paper gives.
PUBLISHED = {
    "sd1": {
        "unet": (lambda: UNet2DConditionModel(cross_attention_dim=768), 859_520_964),
        "autoencoder": (lambda: AutoencoderKL(**VAE), 83_653_863),
        "text": (lambda: clip(768, 12, 12), 123_060_480),
    },
    "sd2-base": {
        "unet": (lambda: UNet2DConditionModel(**SD2), 865_910_724),
        "autoencoder": (lambda: AutoencoderKL(**VAE), 83_653_863),
        "text": (lambda: clip(1024, 23, 16, hidden_act="gelu"), 340_387_840),
    },
    "sd2-v": {
        "unet": (lambda: UNet2DConditionModel(**SD2, sample_size=96), 865_910_724),
        "autoencoder": (lambda: AutoencoderKL(**VAE), 83_653_863),
        "text": (lambda: clip(1024, 23, 16, hidden_act="gelu"), 340_387_840),
    },
    "sdxl-base": {
        "unet": (lambda: UNet2DConditionModel(**SDXL), 2_567_463_684),
        "autoencoder": (lambda: AutoencoderKL(**VAE), 83_653_863),
        "text": (lambda: clip(768, 12, 12), 123_060_480),
        "text_2": (lambda: clip(1280, 32, 20, CLIPTextModelWithProjection, projection_dim=1280), 694_659_840),
    },
}


def count(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_stable_diffusion_has_the_parameters_of_its_published_networks(name: str) -> None:
    ours = make_networks(of_config(name, config.load(f"published/{name}")).contents)
    for section, (make, published) in PUBLISHED[name].items():
        with torch.device("meta"):
            oracle = make()
        assert count(ours[section]) == count(oracle) == published, section
        shapes = {key: weight.shape for key, weight in oracle.state_dict().items()}
        if section in ("unet", "autoencoder"):
            assert {key: weight.shape for key, weight in ours[section].state_dict().items()} == shapes, section
