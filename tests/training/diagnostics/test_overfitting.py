"""Overfitting is diagnosed where the training loss falls and the validation loss rises."""

from __future__ import annotations

from ldm.training.diagnostics.overfitting import Validated, overfitting


def course(*pairs: tuple[float, float]) -> list[Validated]:
    return [Validated(100 * (number + 1), *pair) for number, pair in enumerate(pairs)]


def test_a_rising_validation_loss_and_a_falling_training_loss_are_overfitting() -> None:
    (found,) = overfitting(course((1.0, 1.0), (0.8, 0.7), (0.9, 0.5), (1.1, 0.3)))
    assert found.name == "overfitting"
    assert "1.1, and it was 0.8 at step 200" in found.text
    assert "use step 200" in found.text


def test_falling_or_noisy_validation_and_rising_training_losses_are_not() -> None:
    assert not list(overfitting(course((1.0, 1.0), (0.8, 0.7), (0.7, 0.5), (0.6, 0.3))))
    assert not list(overfitting(course((1.0, 1.0), (0.8, 0.7), (0.82, 0.5), (0.81, 0.3))))
    assert not list(overfitting(course((1.0, 1.0), (0.8, 0.7), (0.9, 0.9), (1.1, 1.2))))
    assert not list(overfitting(course((0.8, 0.7), (1.1, 0.3))))
