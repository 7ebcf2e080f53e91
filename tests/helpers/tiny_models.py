"""A pipeline of tiny random networks."""

from __future__ import annotations

import torch
from torch import nn

from ldm.checkpoint.pipeline import Pipeline
from ldm.conditioning.text.bert import BertConfig, BertTextEncoder
from ldm.conditioning.text.conditioning import TextConditioning
from ldm.conditioning.text.tokenizers import Tokenizer
from ldm.config.diffusion import DiffusionConfig, schedule_config
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.unet.config import UNetConfig
from ldm.models.unet.unet import UNet

CAPTIONS = ["a red dog", "two blue cats", "a trumpet on the beach"]


def random_pipeline() -> Pipeline:
    text = BertConfig(max_length=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    tokenizer = Tokenizer.train(CAPTIONS * 3, vocab_size=80, max_length=text.max_length)
    autoencoder = AutoencoderConfig(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, sample_size=16, scaling_factor=0.8
    )
    unet = UNetConfig(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_layers=(1, 1),
        num_attention_heads=2,
        cross_attention_dim=16,
        norm_num_groups=4,
    )
    schedule = schedule_config(zero_terminal_snr=True, spacing="trailing", set_alpha_to_one=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = (Autoencoder(autoencoder), UNet(unet), BertTextEncoder(text, tokenizer.vocab_size))
        for weight in (weight for network in networks for weight in network.parameters()):
            if weight.ndim > 1:  # layers initialized to zero would hide their inputs
                nn.init.normal_(weight, 0.0, 1.2 * weight[0].numel() ** -0.5)
    text_conditioning = TextConditioning([(networks[2], tokenizer)])
    diffusion = DiffusionConfig(schedule=schedule, prediction="v")
    return Pipeline(*networks[:2], diffusion, {"text": text_conditioning})
