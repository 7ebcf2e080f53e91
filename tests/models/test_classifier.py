from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from tiny_guides import CLASSES, classifier_config
from tiny_pipelines import speaking

from ldm.models.classifier import Classifier


def classifier() -> Classifier:
    torch.manual_seed(0)
    network = Classifier(classifier_config(block_out_channels=(16, 32, 32), attention_levels=(1, 2)))
    speaking(network)
    return network.eval()


def test_a_new_classifier_finds_all_classes_equally_likely() -> None:
    found = Classifier(classifier_config()).log_probability(torch.randn(3, 4, 8, 8), torch.tensor(5), torch.arange(3))
    torch.testing.assert_close(found, torch.full((3,), -math.log(CLASSES)))


@pytest.mark.parametrize("size", [(8, 8), (12, 8), (7, 5)])
def test_latents_of_any_size_have_a_class(size: tuple[int, int]) -> None:
    logits = classifier()(torch.randn(2, 4, *size), torch.tensor([3, 900]))
    assert logits.shape == (2, CLASSES)
    assert logits.isfinite().all()


def test_the_time_step_has_a_say_and_one_for_all_is_one_for_each() -> None:
    network, latents = classifier(), torch.randn(2, 4, 8, 8)
    for_all, for_each = network(latents, torch.tensor(40)), network(latents, torch.tensor([40, 40]))
    torch.testing.assert_close(for_all, for_each)
    assert not torch.allclose(for_all, network(latents, torch.tensor(800)), atol=1e-3)


def test_probabilities_sum_to_one_and_their_gradient_reaches_the_latents() -> None:
    network, latents = classifier(), torch.randn(1, 4, 8, 8).expand(CLASSES, -1, -1, -1).clone().requires_grad_()
    found = network.log_probability(latents, torch.tensor(100), torch.arange(CLASSES))
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), latents)
    assert (gradient.flatten(1).abs().amax(1) > 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_levels": (2,)}, "attention_levels has level 2"),
        ({"num_attention_heads": 5}, "num_attention_heads 5"),
        ({"norm_num_groups": 3}, "norm_num_groups 3"),
    ],
)
def test_sizes_that_do_not_go_together_raise_an_error(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        classifier_config(**options)
