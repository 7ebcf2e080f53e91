"""Attention is the equation of its paper, whichever kernel computes it."""

from __future__ import annotations

import pytest
import torch

from ldm.models.attention import Attention, FeedForward, SpatialAttention, attend


def heads(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("masked", [False, True])
def test_attend_is_the_softmax_of_scaled_products_times_values(masked: bool) -> None:
    queries, keys, values = heads(2, 3, 5, 4), heads(2, 3, 7, 4), heads(2, 3, 7, 4)
    mask = torch.arange(7)[None, None, None] < torch.tensor([4, 7])[:, None, None, None] if masked else None
    scores = torch.einsum("bhqd,bhkd->bhqk", queries, keys) / 2  # sqrt(4)
    scores = scores if mask is None else scores.masked_fill(~mask, float("-inf"))
    expected = torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), values)
    torch.testing.assert_close(attend(queries, keys, values, mask), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_the_products_used_in_bfloat16_training_equal_the_fused_kernel(masked: bool) -> None:
    queries, keys, values = (heads(2, 3, 6, 4).requires_grad_() for _ in range(3))
    mask = torch.arange(6)[None, None, None] < 4 if masked else None
    fused = attend(queries, keys, values, mask)
    with torch.autocast("cpu", torch.bfloat16):
        plain = attend(queries, keys, values, mask)
    assert plain.dtype == torch.bfloat16, "the plain products did not run"
    torch.testing.assert_close(plain.float(), fused, rtol=0.02, atol=0.02)


def test_many_scores_in_bfloat16_training_are_summed_in_float32() -> None:
    given = [heads(1, 2, 128, 4).bfloat16().requires_grad_() for _ in range(3)]
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(*given)
    expected = attend(*exact)
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-5)  # the result alone is rounded
    for ours, theirs in zip(
        torch.autograd.grad(found.sum(), given), torch.autograd.grad(expected.sum(), exact), strict=True
    ):
        torch.testing.assert_close(ours.double(), theirs, rtol=0.01, atol=0.01)


def test_gates_in_bfloat16_training_are_those_of_one_product() -> None:
    network = FeedForward(8)
    tokens, products = heads(2, 5, 8), network.net[0].proj
    with torch.autocast("cpu", torch.bfloat16):
        found = network(tokens)
        values, gate = products(tokens).chunk(2, dim=-1)
        expected = network.net[2](values * torch.nn.functional.gelu(gate))
    torch.testing.assert_close(found, expected)


def test_projected_keys_and_values_stand_for_their_context() -> None:
    attention = Attention(8, heads=2, context_channels=6)
    tokens, context = heads(2, 5, 8), heads(2, 3, 6)
    projected = attention.project(context)
    assert projected.keys.shape == projected.values.shape == (2, 2, 3, 4)
    twice = attention(tokens, attention.project(torch.cat([context, context], dim=1)))
    torch.testing.assert_close(attention(tokens, projected), twice)  # a context said twice is the same context


def test_attention_over_positions_does_not_depend_on_where_they_are() -> None:
    attention = SpatialAttention(8, groups=2, eps=1e-6)
    x = heads(2, 8, 4, 5)
    torch.testing.assert_close(attention(x).transpose(2, 3), attention(x.transpose(2, 3)), rtol=1e-5, atol=1e-6)
