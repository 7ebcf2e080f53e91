"""A network prepared for sampling is the network: the same numbers, from what its blocks do in fewer passes."""

from __future__ import annotations

import copy
from typing import TypeVar

import pytest
import torch
from tiny_unets import CONFIG, KINDS, random_context, randomised
from torch import Tensor, nn

from ldm.models import tiling
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.autoencoder.vq import VQConfig
from ldm.models.fast import blocks, packed, prepare_for_sampling
from ldm.models.layers import Upsample
from ldm.models.unet.unet import UNet

Network = TypeVar("Network", UNet, Autoencoder)

AUTOENCODERS = {
    "kl": AutoencoderConfig(block_out_channels=(8, 16), norm_num_groups=4, latent_channels=3, scaling_factor=0.7),
    "vq": VQConfig(codebook_size=11, block_out_channels=(8, 16), norm_num_groups=4, attention_levels=(1,)),
    "kl without attention": AutoencoderConfig(block_out_channels=(8, 16), norm_num_groups=4, mid_block_attention=False),
}

PACKS_HALF = pytest.mark.skipif(
    not packed.works(torch.bfloat16), reason="needs a processor for which oneDNN lays out bfloat16, as with AVX-512"
)


def difference(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def random_autoencoder(kind: str) -> Autoencoder:
    torch.manual_seed(0)
    return speaking(Autoencoder(AUTOENCODERS[kind]).eval())


def speaking(network: Network) -> Network:
    """Weights that keep the variance of what goes through them, so that every layer's rounding shows."""
    for weight in network.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, 0.0, weight[0].numel() ** -0.5)
    return network


@torch.inference_mode()
@pytest.mark.parametrize("size", [(8, 8), (9, 13)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_prepared_unet_of_any_kind_gives_the_same_output(kind: str, size: tuple[int, int]) -> None:
    config, classes, added = KINDS[kind]
    unet = randomised(config)
    latents, t, context = torch.randn(2, 4, *size), torch.tensor([3, 700]), random_context(config)
    prepared = prepare_for_sampling(unet)
    expected = unet(latents, t, context, classes, added)
    assert difference(prepared(latents, t, context, classes, added), expected) < 1e-5
    constants = prepared.embed_time(t, classes, added), prepared.project_context(context)
    for batch in (latents, latents[:1].expand(2, -1, -1, -1)):  # weights were laid out for what came first
        assert difference(prepared.denoise(batch, *constants), unet.denoise(batch, *constants)) < 1e-5
    at_one_time = constants[0][:1], constants[1]
    assert difference(prepared.denoise(latents, *at_one_time), unet.denoise(latents, *at_one_time)) < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_a_prepared_autoencoder_gives_the_same_latents_and_images(kind: str) -> None:
    autoencoder = random_autoencoder(kind)
    prepared = prepare_for_sampling(autoencoder)
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    latents = autoencoder.encode(images).mode()
    assert difference(prepared.encode(images).mode(), latents) < 1e-5
    assert difference(prepared.decode(latents), autoencoder.decode(latents)) < 1e-5
    cut = tiling.Tiling(8, 2)
    large = torch.randn(1, latents.shape[1], 11, 16)
    found, expected = (tiling.decode_tiled(network, large, cut) for network in (prepared, autoencoder))
    assert difference(found, expected) < 1e-5


@torch.inference_mode()
def test_in_bfloat16_a_prepared_unet_is_nearer_to_the_exact_numbers_than_the_plain_one() -> None:
    exact = speaking(randomised(CONFIG))
    latents, t, context = torch.randn(2, 4, 16, 16), torch.tensor([3, 700]), torch.randn(2, 5, 12)
    expected = copy.deepcopy(exact).double()(latents.double(), t, context.double())
    found = difference(prepare_for_sampling(exact, torch.bfloat16)(latents, t, context), expected)
    assert found <= difference(copy.deepcopy(exact).bfloat16()(latents, t, context), expected)


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_a_prepared_unet_of_any_kind_is_about_as_near(kind: str) -> None:
    config, classes, added = KINDS[kind]
    exact = speaking(randomised(config))
    given = torch.randn(2, 4, 16, 16), torch.tensor([3, 700]), random_context(config), classes, added
    expected = exact(*given)
    found = difference(prepare_for_sampling(exact, torch.bfloat16)(*given), expected)
    assert found < 1.25 * difference(copy.deepcopy(exact).bfloat16()(*given), expected)  # other sums are rounded


@PACKS_HALF
@torch.inference_mode()
@pytest.mark.parametrize("summed", [False, True])
def test_in_bfloat16_a_prepared_autoencoder_is_as_near(summed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(blocks.PRODUCTS, torch.bfloat16, 0 if summed else 2**60)
    exact = random_autoencoder("kl")
    z = torch.randn(4, 3, 24, 24)
    images = copy.deepcopy(exact).double().decode(z)
    prepared = prepare_for_sampling(exact, torch.bfloat16)
    found = difference(prepared.decode(z), images)
    assert found <= difference(copy.deepcopy(exact).bfloat16().decode(z), images)
    doubling = [block for block in prepared.modules() if isinstance(block, blocks.PreparedUpsample)]
    assert [len(block.places) for block in doubling] == [4 if summed else 0]


@PACKS_HALF
@torch.inference_mode()
def test_sums_of_weights_are_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(blocks.PRODUCTS, torch.bfloat16, 0)
    exact, x = Upsample(64), torch.randn(1, 64, 16, 16).bfloat16()
    rounded, expected = copy.deepcopy(exact).bfloat16(), exact(x.float())
    once, twice = (difference(blocks.PreparedUpsample(rounded, of)(x), expected) for of in (exact, rounded))
    assert once < 0.9 * twice


@torch.inference_mode()
@pytest.mark.parametrize(("length", "kept"), [(5, 16), (16, 16), (77, 80)])
def test_contexts_are_filled_up_behind_a_mask(length: int, kept: int) -> None:
    unet = randomised(CONFIG)
    context, prepared = torch.randn(2, length, 12), prepare_for_sampling(unet)
    for keys, values, mask in prepared.project_context(context):
        assert keys.shape[2] == values.shape[2] == kept
        assert (None if mask is None else mask.sum()) == (None if length == kept else length)
    given = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), context
    assert difference(prepared(*given), unet(*given)) < 1e-5


def test_where_pytorch_lacks_packed_layers_the_copy_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whether a weight may have a gradient decides how matmul folds tokens that are not contiguous.
    unet = randomised(CONFIG).requires_grad_(False)
    given = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), random_context(CONFIG)
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    packed.works.cache_clear()
    try:
        assert torch.equal(prepare_for_sampling(unet)(*given), unet(*given))
        assert not packed.works(torch.float32)
    finally:
        monkeypatch.undo()
        packed.works.cache_clear()
    assert packed.works(torch.float32)


def test_preparing_and_generating_do_not_change_the_network_or_the_process() -> None:
    unet = randomised(CONFIG)
    state = {name: weight.clone() for name, weight in unet.state_dict().items()}
    before = torch.get_float32_matmul_precision(), torch.is_grad_enabled(), torch.get_rng_state().clone()
    packed.works.cache_clear()
    prepared = prepare_for_sampling(unet)
    prepared(torch.ones(1, 4, 8, 8), torch.tensor([3]), torch.ones(1, 5, 12))
    assert (torch.get_float32_matmul_precision(), torch.is_grad_enabled()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert all(torch.equal(weight, state[name]) for name, weight in unet.state_dict().items())
    assert all(weight.requires_grad for weight in unet.parameters())
    shared = {weight.data_ptr() for weight in unet.parameters()}
    own = [name for name, weight in prepared.named_parameters() if weight.data_ptr() not in shared]
    assert own == ["conv_in.weight", "conv_out.weight"]


def test_a_gradient_that_would_be_lost_raises_an_error() -> None:
    prepared = prepare_for_sampling(randomised(CONFIG))
    with pytest.raises(RuntimeError, match="no gradients"):
        prepared(torch.ones(1, 4, 8, 8, requires_grad=True), torch.tensor([3]), torch.ones(1, 5, 12))


def test_layers_that_cannot_be_packed_and_methods_of_somebody_keep_their_blocks_as_they_are() -> None:
    unet: UNet = randomised(CONFIG)
    for layer in unet.modules():
        if isinstance(layer, nn.Conv2d):
            layer.padding_mode = "circular"  # as for textures without seams
            layer._reversed_padding_repeated_twice = [1, 1, 1, 1] if layer.padding == (1, 1) else [0, 0, 0, 0]
    unet.mid_block.attentions[0].transformer_blocks[0].ff.forward = torch.zeros_like
    unet.mid_block.resnets[1].shifted = lambda x, shift, size: -x
    uneven = unet.down_blocks[1].attentions[0].transformer_blocks[0].attn1
    uneven.to_k = nn.Linear(24, 24)
    given = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), random_context(CONFIG)
    with torch.no_grad():
        assert difference(prepare_for_sampling(unet)(*given), unet(*given)) < 1e-5


def test_blocks_that_somebody_has_changed_or_hooked_into_stay_what_they_are() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    unet: UNet = randomised(CONFIG)
    block = unet.mid_block.attentions[0].transformer_blocks[0]
    block.attn1.to_q = Doubled(32, 32, bias=False)
    unet.up_blocks[0].resnets[0].conv1.register_forward_hook(lambda module, inputs, output: output + 1)
    given = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), random_context(CONFIG)
    with torch.no_grad():
        assert difference(prepare_for_sampling(unet)(*given), unet(*given)) < 1e-5
