"""Operations counted by hand, and the memory of activations and of training."""

import torch
from torch import nn
from torch.nn import functional as F

from ldm.devices import on_meta
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.cost import (
    autoencoder_flops,
    count_forward,
    count_forward_backward,
    count_parameters,
    denoiser_flops,
    training_memory,
)
from ldm.models.unet.config import UNetConfig
from ldm.models.unet.unet import UNet


def convolution(side: int, into: int, out: int, kernel: int = 3) -> int:
    """One multiplication and one addition for each weight at each position."""
    return 2 * side**2 * into * out * kernel**2


def linear(tokens: int, into: int, out: int) -> int:
    return 2 * tokens * into * out


def attention(queries: int, keys: int, width: int) -> int:
    """Two matrix products, of all heads together."""
    return 2 * 2 * queries * keys * width


def resnet(side: int, into: int, out: int) -> int:
    return convolution(side, into, out) + convolution(side, out, out) + (into != out) * convolution(side, into, out, 1)


def test_operations_of_an_autoencoder_equal_those_counted_by_hand() -> None:
    config = AutoencoderConfig(
        latent_channels=2, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, mid_block_attention=True
    )
    with on_meta():
        counted = autoencoder_flops(Autoencoder(config), side=8)  # images of 16x16
    mid = 2 * resnet(8, 8, 8) + 4 * linear(64, 8, 8) + attention(64, 64, 8)
    down = resnet(16, 4, 4) + convolution(8, 4, 4) + resnet(8, 4, 8)
    encode = convolution(16, 3, 4) + down + mid + convolution(8, 8, 4) + convolution(8, 4, 4, 1)
    up = 2 * resnet(8, 8, 8) + convolution(16, 8, 8) + resnet(16, 8, 4) + resnet(16, 4, 4)
    decode = convolution(8, 2, 2, 1) + convolution(8, 2, 8) + mid + up + convolution(16, 4, 3)
    assert counted == {"encode": encode, "decode": decode}


def test_operations_of_a_u_net_call_equal_those_counted_by_hand() -> None:
    """One level with a transformer of one block that attends to four tokens of context."""
    config = UNetConfig(
        in_channels=2,
        out_channels=2,
        block_out_channels=(8,),
        layers_per_block=1,
        attention_layers=(1,),
        num_attention_heads=2,
        cross_attention_dim=6,
        norm_num_groups=2,
    )
    with on_meta():
        counted = denoiser_flops(UNet(config), side=4, tokens=4)
    tokens = 4 * 4
    self_attention = 4 * linear(tokens, 8, 8) + attention(tokens, tokens, 8)
    cross_attention = 2 * linear(tokens, 8, 8) + 2 * linear(4, 6, 8) + attention(tokens, 4, 8)
    feed_forward = linear(tokens, 8, 2 * 32) + linear(tokens, 32, 8)
    transformer = 2 * linear(tokens, 8, 8) + self_attention + cross_attention + feed_forward
    time = linear(1, 8, 32) + linear(1, 32, 32) + 5 * linear(1, 32, 8)  # and its projection for each of five ResNets
    blocks = resnet(4, 8, 8) + 2 * resnet(4, 8, 8) + 2 * resnet(4, 16, 8) + 4 * transformer
    assert counted == convolution(4, 2, 8) + time + blocks + convolution(4, 8, 2)


def test_products_outside_of_layers_are_counted() -> None:
    x, weight = torch.empty(2, 3, 8, 8, device="meta"), torch.empty(6, 3, 2, 2, device="meta")
    tokens = x.flatten(2)  # (2, 3, 64)

    def call() -> str:
        F.conv2d(x, weight, stride=2)
        F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
        torch.einsum("bcn,bdn->bcd", tokens, tokens)
        tokens @ tokens.transpose(1, 2)
        F.scaled_dot_product_attention(tokens, tokens, tokens)
        F.linear(tokens, torch.empty(5, 64, device="meta"))
        return "result"

    convolutions = 2 * convolution(4, 3, 6, kernel=2) + 2 * convolution(8, 3, 6, kernel=2)
    products = 2 * 2 * linear(3, 64, 3) + 2 * attention(3, 3, 64) + linear(6, 64, 5)
    assert count_forward(call) == (convolutions + products, "result")


def test_a_backward_pass_takes_twice_the_forward_pass_and_keeps_the_inputs_of_products() -> None:
    with on_meta():
        network = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 8))
        x = torch.empty(4, 16, requires_grad=True)
        flops, activations = count_forward_backward(network, lambda: network(x))
    assert flops == 3 * (linear(4, 16, 32) + linear(4, 32, 8))
    assert activations == 4 * 4 * (16 + 32)


def test_frozen_parameters_are_not_counted_as_trained() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4).requires_grad_(False))
    assert count_parameters(network) == 9 + 16
    assert count_parameters(network, trained_only=True) == 9


def test_memory_of_training_is_five_values_of_a_trained_parameter_and_one_of_a_frozen_one() -> None:
    assert training_memory(trained=10, averages=10, frozen=7) == 4 * (5 * 10 + 7)
    assert training_memory(trained=10, averages=0, moments=20) == 4 * 2 * 10 + 20
