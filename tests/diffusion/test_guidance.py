from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm.diffusion.denoiser import Denoised, Denoiser, make_denoiser
from ldm.diffusion.guidance import classifier_free, composed, thresholded, within
from ldm.diffusion.level import Level
from ldm.diffusion.prediction import make_prediction

LEVEL = Level(*(torch.tensor(value, dtype=torch.float64) for value in (0.6, 0.8)), torch.tensor(500))


class Counted:
    """A conditional network that remembers the batches it was called with."""

    def __init__(self, prediction: str = "v") -> None:
        self.batches: list[int] = []
        self.prediction = make_prediction(prediction)

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
    of_outputs = make_prediction(prediction).to_x0(X, guided.output, LEVEL)
    torch.testing.assert_close(guided.x0, of_outputs, rtol=0, atol=0)


def test_full_rescaling_gives_the_output_the_unguided_standard_deviation() -> None:
    model = Counted()
    guided = classifier_free(model.condition, CONTEXT, NEGATIVE, model.prediction, 7.5, rescale=1.0)(X, LEVEL)
    torch.testing.assert_close(guided.output.std((1, 2, 3)), model.output(X, CONTEXT).std((1, 2, 3)))


def test_rescaling_in_part_mixes_both_and_its_image_follows_the_output() -> None:
    model = Counted()
    rescaled, full, plain = (
        classifier_free(model.condition, CONTEXT, NEGATIVE, model.prediction, 7.5, rescale=share)(X, LEVEL)
        for share in (0.7, 1.0, 0.0)
    )
    torch.testing.assert_close(rescaled.output, 0.7 * full.output + 0.3 * plain.output)
    torch.testing.assert_close(rescaled.x0, model.prediction.to_x0(X, rescaled.output, LEVEL), rtol=0, atol=0)


OWNERS, WEIGHTS = torch.tensor([0, 0, 1, 2]), torch.tensor([1.2, -0.5, 1.0, 0.7])
PARTS = random(4, 5, 6, seed=3)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_composed_conditions_add_their_weighted_differences_in_one_call(scale: float) -> None:
    model = Counted()
    made = composed(model.condition, PARTS, OWNERS, WEIGHTS, NEGATIVE, model.prediction, scale)(X, LEVEL)
    assert model.batches == [3 + 4]
    without = model.output(X, NEGATIVE)
    first, second, third, fourth = (
        model.output(X[owner : owner + 1], PARTS[row : row + 1])[0] - without[owner]
        for row, owner in enumerate(OWNERS.tolist())
    )
    pulls = torch.stack([1.2 * first - 0.5 * second, third, 0.7 * fourth])
    torch.testing.assert_close(made.output, without + scale * pulls, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(made.x0, model.prediction.to_x0(X, made.output, LEVEL), rtol=0, atol=0)


def test_one_condition_of_weight_1_is_classifier_free_guidance() -> None:
    model, alone = Counted(), (torch.arange(3), torch.ones(3))
    made = composed(model.condition, CONTEXT, *alone, NEGATIVE, model.prediction, 5.0, 0.7)(X, LEVEL)
    guided = classifier_free(model.condition, CONTEXT, NEGATIVE, model.prediction, 5.0, 0.7)(X, LEVEL)
    torch.testing.assert_close(made.output, guided.output, rtol=1e-5, atol=1e-5)


def image(x0: Tensor) -> Denoiser:
    return lambda x, level: Denoised(x0, x0)


def test_what_a_share_of_the_numbers_exceeds_is_cut_and_the_rest_shrinks() -> None:
    numbers = torch.linspace(-10, 10, 201).reshape(1, 1, 3, 67)
    made = thresholded(image(numbers), 0.5, 2.0)(numbers, LEVEL).x0  # half of them are within 5
    torch.testing.assert_close(made, numbers.clamp(-5, 5) * 2 / 5)


def test_images_within_the_limit_stay_and_each_has_its_own_threshold() -> None:
    calm = random(1, 4, 8, 8).clamp(-1.5, 1.5)
    made = thresholded(image(torch.cat([calm, 4 * calm])), 0.9, 1.5)(X[:2], LEVEL).x0
    assert torch.equal(made[:1], calm)
    bound = torch.quantile(4 * calm.abs().flatten(), 0.9).item()
    torch.testing.assert_close(made[1:], (4 * calm).clamp(-bound, bound) * (1.5 / bound))


@pytest.mark.parametrize(("low", "high", "inside"), [(0.0, 1.0, False), (1.0, 2.0, True), (4 / 3 + 1e-9, 9.0, False)])
def test_an_interval_guides_at_its_levels_alone(low: float, high: float, inside: bool) -> None:
    guided, plain = image(X), image(-X)  # sigma / alpha of the level is 4 / 3
    assert torch.equal(within(guided, plain, low, high)(X, LEVEL).x0, X if inside else -X)
