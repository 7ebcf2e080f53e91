from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm.diffusion.denoiser import Denoiser, make_denoiser
from ldm.diffusion.guidance import classifier_free
from ldm.diffusion.level import Level
from ldm.diffusion.prediction import Prediction

LEVEL = Level(*(torch.tensor(value, dtype=torch.float64) for value in (0.6, 0.8)), torch.tensor(500))


class Counted:
    """A conditional network that remembers the batches it was called with."""

    def __init__(self, prediction: str = "v") -> None:
        self.batches: list[int] = []
        self.prediction = Prediction(prediction)

    def output(self, x: Tensor, context: Tensor) -> Tensor:
        return torch.sin(x) * context.mean((1, 2)).view(-1, 1, 1, 1) + 0.1 * x

    def condition(self, *contexts: Tensor) -> Denoiser:
        context = torch.cat(contexts)

        def network(x: Tensor, t: Tensor) -> Tensor:
            self.batches.append(len(x))
            return self.output(x, context)

        return make_denoiser(network, self.prediction)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, CONTEXT, NEGATIVE = random(3, 4, 8, 8), random(3, 5, 6, seed=1), random(3, 5, 6, seed=2)


def test_scale_1_is_the_conditional_denoiser_in_one_call() -> None:
    model = Counted()
    guided = classifier_free(model.condition, CONTEXT, NEGATIVE, model.prediction, 1.0)(X, LEVEL)
    assert model.batches == [3]
    plain = model.condition(CONTEXT)(X, LEVEL)
    assert torch.equal(guided.output, plain.output)
    assert torch.equal(guided.x0, plain.x0)


def test_both_halves_share_one_network_call() -> None:
    model = Counted()
    classifier_free(model.condition, CONTEXT, NEGATIVE, model.prediction, 3.0)(X, LEVEL)
    assert model.batches == [6]


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, 7.5])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "flow"])
def test_the_guided_output_is_the_negative_plus_scale_times_the_difference(scale: float, prediction: str) -> None:
    model = Counted(prediction)
    guided = classifier_free(model.condition, CONTEXT, NEGATIVE, model.prediction, scale)(X, LEVEL)
    positive, negative = model.output(X, CONTEXT), model.output(X, NEGATIVE)
    torch.testing.assert_close(guided.output, (1 - scale) * negative + scale * positive, rtol=1e-5, atol=1e-5)
    of_outputs = Prediction(prediction).to_x0(X, guided.output, LEVEL)
    torch.testing.assert_close(guided.x0, of_outputs, rtol=0, atol=0)


def test_full_rescaling_gives_the_output_the_unguided_standard_deviation() -> None:
    model = Counted()
    guided = classifier_free(model.condition, CONTEXT, NEGATIVE, model.prediction, 7.5, rescale=1.0)(X, LEVEL)
    torch.testing.assert_close(guided.output.std((1, 2, 3)), model.output(X, CONTEXT).std((1, 2, 3)))


def test_rescaling_in_part_mixes_both_and_its_picture_follows_the_output() -> None:
    model = Counted()
    rescaled, full, plain = (
        classifier_free(model.condition, CONTEXT, NEGATIVE, model.prediction, 7.5, rescale=share)(X, LEVEL)
        for share in (0.7, 1.0, 0.0)
    )
    torch.testing.assert_close(rescaled.output, 0.7 * full.output + 0.3 * plain.output)
    torch.testing.assert_close(rescaled.x0, model.prediction.to_x0(X, rescaled.output, LEVEL), rtol=0, atol=0)
