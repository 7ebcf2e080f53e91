"""The U-Net divides into what is constant while sampling and what is not, and starts as a zero function."""

from __future__ import annotations

import pytest
import torch
from tiny_unets import ADDED, CLASSES, CONFIG, KINDS, random_context, randomised
from torch import nn

from ldm.models.unet.config import UNetConfig
from ldm.models.unet.unet import UNet


@pytest.fixture
def unet() -> UNet:
    return randomised(CONFIG)


def test_denoise_with_constants_made_before_is_forward(unet: UNet) -> None:
    latents, context = torch.randn(3, 4, 8, 8), torch.randn(3, 5, 12)
    t = torch.tensor([0, 500, 999])
    projected = unet.project_context(context)
    assert len(projected) == 1 * 1 + 1 * 2 + 2 + 2 * 2 + 2 * 1  # down, down, mid, up, up
    assert torch.equal(unet.denoise(latents, unet.embed_time(t), projected), unet(latents, t, context))


def test_one_time_embedding_serves_a_whole_batch(unet: UNet) -> None:
    latents, context = torch.randn(3, 4, 8, 8), torch.randn(3, 5, 12)
    grid = unet.embed_time(torch.tensor([10, 400]))
    expected = unet(latents, torch.full((3,), 400), context)
    made = unet.denoise(latents, grid[1:2], unet.project_context(context))
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)


def test_a_new_network_is_zero_everywhere_and_learns_in_every_part() -> None:
    unet = UNet(CONFIG)
    latents, t, context = torch.randn(2, 4, 8, 8), torch.tensor([3, 70]), torch.randn(2, 5, 12)
    assert torch.count_nonzero(unet(latents, t, context)) == 0
    optimizer = torch.optim.SGD(unet.parameters(), lr=1.0)
    for _ in range(3):  # zero layers pass a gradient on only after they have moved
        optimizer.zero_grad()
        (unet(latents, t, context) - 1).square().mean().backward()
        optimizer.step()
    still = [name for name, weight in unet.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert still == []


@pytest.mark.parametrize("size", [(7, 8), (9, 13)])
def test_sides_that_do_not_halve_evenly_come_back(unet: UNet, size: tuple[int, int]) -> None:
    output = unet(torch.randn(1, 4, *size), torch.tensor([1]), torch.randn(1, 5, 12))
    assert output.shape == (1, 4, *size)


@pytest.mark.parametrize("size", [(7, 8), (9, 13)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_divides_into_constants_and_the_rest_at_any_size(kind: str, size: tuple[int, int]) -> None:
    config, classes, added = KINDS[kind]
    unet = randomised(config)
    latents, t, context = torch.randn(2, 4, *size), torch.tensor([3, 700]), random_context(config)
    output = unet(latents, t, context, classes, added)
    assert output.shape == latents.shape
    embedding, projected = unet.embed_time(t, classes, added), unet.project_context(context)
    assert torch.equal(unet.denoise(latents, embedding, projected), output)
    at_one_time = unet.embed_time(t[1:], classes, added)
    torch.testing.assert_close(at_one_time[-1], embedding[1], rtol=1e-5, atol=1e-5)
    assert len(at_one_time) == (1 if classes is None and added is None else 2)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_starts_as_zero_and_passes_a_gradient_to_every_parameter(kind: str) -> None:
    config, classes, added = KINDS[kind]
    unet = UNet(config)
    latents, t, context = torch.randn(2, 4, 7, 8), torch.tensor([3, 70]), random_context(config)
    assert torch.count_nonzero(unet(latents, t, context, classes, added)) == 0
    generator = torch.Generator().manual_seed(0)
    for weight in unet.parameters():
        if not weight.any():
            nn.init.normal_(weight, 0.0, 0.1, generator=generator)
    unet(latents, t, context, classes, added).square().mean().backward()
    assert [name for name, weight in unet.named_parameters() if weight.grad is None or not weight.grad.any()] == []


@pytest.mark.parametrize("kind", KINDS)
def test_missing_and_unexpected_conditioning_are_errors(kind: str) -> None:
    config, classes, added = KINDS[kind]
    unet, t, context = UNet(config), torch.tensor([3, 70]), random_context(config)
    with pytest.raises(ValueError, match="needs classes" if classes is not None else "takes no classes"):
        unet.embed_time(t, CLASSES if classes is None else None, added)
    with pytest.raises(ValueError, match="needs pooled text" if added is not None else "takes no pooled text"):
        unet.embed_time(t, classes, ADDED if added is None else None)
    with pytest.raises(ValueError, match="needs context" if context is not None else "takes no context"):
        unet.project_context(torch.zeros(2, 1, 12) if context is None else None)


def test_memory_format_does_not_change_the_numbers(unet: UNet) -> None:
    latents, t, context = torch.randn(2, 4, 8, 8), torch.tensor([3, 70]), torch.randn(2, 5, 12)
    expected = unet(latents, t, context)
    unet.to(memory_format=torch.channels_last)
    made = unet(latents.contiguous(memory_format=torch.channels_last), t, context)
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=2e-5)


def test_published_text_to_image_network_has_its_published_number_of_parameters() -> None:
    config = UNetConfig(
        block_out_channels=(320, 640, 1280, 1280),
        attention_layers=(1, 1, 1, 0),
        cross_attention_dim=1280,
        use_linear_projection=False,
    )
    with torch.device("meta"):
        unet = UNet(config)
    assert sum(weight.numel() for weight in unet.parameters()) == 872_300_484  # txt2img-1p4B (Rombach et al. 2022)
