"""Operations counted by hand, and what a description costs: time and memory."""

import json
import subprocess
import sys

import pytest
import torch
from running import PEAK
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ldm.checkpoint.compvis.contents import Contents
from ldm.info import cost
from ldm.info.cost import flops, make_networks
from ldm.info.describe import Description
from ldm.info.report import report
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.unet.config import UNetConfig


def convolution(side: int, into: int, out: int, kernel: int = 3) -> int:
    """A multiplication and an addition for each weight at each position."""
    return 2 * side**2 * into * out * kernel**2


def linear(tokens: int, into: int, out: int) -> int:
    return 2 * tokens * into * out


def attention(queries: int, keys: int, width: int) -> int:
    """Two products of matrices, of all heads together."""
    return 2 * 2 * queries * keys * width


def resnet(side: int, into: int, out: int) -> int:
    return convolution(side, into, out) + convolution(side, out, out) + (into != out) * convolution(side, into, out, 1)


def test_operations_of_an_autoencoder_are_those_counted_by_hand() -> None:
    config = AutoencoderConfig(
        latent_channels=2, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, mid_block_attention=True
    )
    contents = Contents(autoencoder=config)
    counted = flops(contents, make_networks(contents), side=8, tokens=1)  # images of 16x16
    mid = 2 * resnet(8, 8, 8) + 4 * linear(64, 8, 8) + attention(64, 64, 8)
    down = resnet(16, 4, 4) + convolution(8, 4, 4) + resnet(8, 4, 8)
    encode = convolution(16, 3, 4) + down + mid + convolution(8, 8, 4) + convolution(8, 4, 4, 1)
    up = 2 * resnet(8, 8, 8) + convolution(16, 8, 8) + resnet(16, 8, 4) + resnet(16, 4, 4)
    decode = convolution(8, 2, 2, 1) + convolution(8, 2, 8) + mid + up + convolution(16, 4, 3)
    assert counted == {"encode": encode, "decode": decode}


def test_operations_of_a_u_net_call_are_those_counted_by_hand() -> None:
    """One level with a transformer of one block over four tokens of context."""
    unet = UNetConfig(
        in_channels=2,
        out_channels=2,
        block_out_channels=(8,),
        layers_per_block=1,
        attention_layers=(1,),
        num_attention_heads=2,
        cross_attention_dim=6,
        norm_num_groups=2,
    )
    contents = Contents(unet=unet)
    counted = flops(contents, make_networks(contents), side=4, tokens=4)
    tokens = 4 * 4
    self_attention = 4 * linear(tokens, 8, 8) + attention(tokens, tokens, 8)
    cross_attention = 2 * linear(tokens, 8, 8) + 2 * linear(4, 6, 8) + attention(tokens, 4, 8)
    feed_forward = linear(tokens, 8, 2 * 32) + linear(tokens, 32, 8)
    transformer = 2 * linear(tokens, 8, 8) + self_attention + cross_attention + feed_forward
    time = linear(1, 8, 32) + linear(1, 32, 32) + 5 * linear(1, 32, 8)  # and its projection for each of five ResNets
    ways = resnet(4, 8, 8) + 2 * resnet(4, 8, 8) + 2 * resnet(4, 16, 8) + 4 * transformer
    assert counted == {"unet": convolution(4, 2, 8) + time + ways + convolution(4, 8, 2)}


def test_products_outside_of_layers_are_counted_as_pytorch_counts_them() -> None:
    x, weight = torch.empty(2, 3, 8, 8, device="meta"), torch.empty(6, 3, 2, 2, device="meta")
    tokens = x.flatten(2)

    def call() -> None:
        F.conv2d(x, weight, stride=2)
        F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
        torch.einsum("bcn,bdn->bcd", tokens, tokens)
        tokens @ tokens.transpose(1, 2)
        F.scaled_dot_product_attention(tokens, tokens, tokens)
        F.linear(tokens, torch.empty(5, 64, device="meta"))

    with FlopCounterMode(display=False) as counter:
        call()
    assert cost._count(call) == counter.get_total_flops()


@pytest.mark.parametrize("adversarial", [0.0, 0.5])
def test_memory_of_training_counts_what_is_trained_five_times_and_what_is_frozen_once(adversarial: float) -> None:
    from ldm import config

    loaded = config.load("tiny", ["text.frozen=true", f"loss.adversarial.weight={adversarial}"])
    facts = report(Description("tiny", "configuration", Contents.of_config(loaded), config=loaded))
    counts = {name: part["total"] for name, part in facts["parameters"].items() if name != "total"}
    frozen = counts["autoencoder"] + counts["text"]
    assert facts["memory"]["training"]["unet"] == 20 * counts["unet"] + 4 * frozen
    opponent = 2_764_737 + 896 if adversarial else 0  # of Isola et al. 2017: convolutions, then batch normalisation
    assert facts["memory"]["training"]["autoencoder"] == 20 * (counts["autoencoder"] + opponent)


PROBE = """
import json, time
from ldm.info.describe import describe
from ldm.info.report import report
report(describe("tiny"))  # imports what torch's meta device imports when it first computes
before = peak()
start = time.process_time()
facts = report(describe("published/txt2img-1p4B"))
seconds = time.process_time() - start
grown = peak() - before
print(json.dumps({"parameters": facts["parameters"]["total"], "seconds": seconds, "grown": grown}))
"""


def test_1_45_billion_parameters_are_described_in_under_a_second_and_without_their_memory() -> None:
    """Of the process' own time, which other work on the machine does not lengthen."""
    done = subprocess.run([sys.executable, "-c", PEAK + PROBE], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["parameters"] == 872_300_484 + 581_994_042 + 83_653_863
    assert found["seconds"] < 1.0
    assert found["grown"] < 2**26  # bytes; the weights would be 6e9
