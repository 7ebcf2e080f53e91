"""Initialization, averages and revival of codebook vectors, and training of a VQ autoencoder."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from loss_terms import losses
from tiny_stages import Colours, autoencoder_stage, micro_batches, settings, unet_stage

from ldm.data.random import StepRandom
from ldm.errors import UserError
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.autoencoder.vq import Quantizer, nearest
from ldm.training.losses.codebook import CodebookConfig, CodebookTrainer, choose, k_means, quantize_z, totals
from ldm.training.stages.autoencoder import AutoencoderStage

VQ = ("autoencoder.kind=vq", "autoencoder.codebook_size=16", "loss.codebook.window=5", "loss.codebook.start_steps=2")


def vq_stage(*overrides: str) -> AutoencoderStage:
    return autoencoder_stage(*VQ, *overrides)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trainer(**options: object) -> CodebookTrainer:
    quantizer = Quantizer(8, 2)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(random(8, 2, seed=1))
    config = CodebookConfig(**options)
    return CodebookTrainer(quantizer, [copy.deepcopy(quantizer)], config, Accelerator(cpu=True), StepRandom(0))


def test_totals_equal_a_product_with_one_hot_vectors() -> None:
    points, indices = random(30, 3), torch.arange(30) % 4
    sizes, sums = totals(points, indices, 6)
    hot = torch.nn.functional.one_hot(indices, 6).double()
    torch.testing.assert_close(sizes, hot.sum(0))
    torch.testing.assert_close(sums, hot.t() @ points.double())


def test_no_point_is_chosen_twice_before_each_was_chosen_once() -> None:
    points = torch.arange(5.0)[:, None]
    few, many = (choose(points, count, torch.Generator().manual_seed(0)).flatten() for count in (3, 12))
    assert few.unique().numel() == 3
    assert set(torch.bincount(many.long()).tolist()) == {2, 3}


def test_k_means_ends_with_each_centre_at_the_mean_of_its_points() -> None:
    points = torch.cat([0.1 * random(50, 2, seed=n) + 5 * random(1, 2, seed=9 + n) for n in range(4)])
    centres = k_means(points, 6, torch.Generator().manual_seed(0), iterations=50)
    sizes, sums = totals(points, nearest(points, centres), 6)
    torch.testing.assert_close(centres.double(), sums / sizes[:, None], rtol=1e-6, atol=1e-6)
    spread = torch.cdist(points, centres).amin(1).square().mean()
    assert spread < 0.05 * points.var(0).sum()


def test_the_codebook_loss_moves_the_codebook_and_the_commitment_moves_z() -> None:
    stage = vq_stage()
    z = random(2, 4, 8, 8).requires_grad_()
    quantised = quantize_z(stage.average.quantize.requires_grad_(), z)
    zero = torch.zeros(2, 3, 32, 32)
    terms = losses(list(stage.terms.values()), zero, zero, codebook=quantised)
    expected = (z - quantised.nearest).square().mean()
    torch.testing.assert_close(terms["codebook"], expected)
    torch.testing.assert_close(terms["total"], 1.25 * expected)
    weight = stage.average.quantize.embedding.weight
    assert torch.autograd.grad(terms["codebook"], z, retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(terms["commitment"], weight, retain_graph=True, allow_unused=True) == (None,)
    [gradient] = torch.autograd.grad(terms["commitment"], z, retain_graph=True)
    torch.testing.assert_close(gradient, 2 * (z - quantised.nearest).detach() / z.numel())
    [gradient] = torch.autograd.grad(terms["codebook"], weight)
    assert gradient.abs().sum() > 0


def test_averages_equal_the_closed_form_of_the_paper() -> None:
    book, z = trainer(decay=0.9), random(3, 2, 4, 4)
    before = book.quantizer.embedding.weight.detach().clone()
    quantised = quantize_z(book.quantizer, z)
    book.update([quantised], range(3), 1)
    sizes, sums = totals(z.permute(0, 2, 3, 1).flatten(0, 2), quantised.indices.flatten(), 8)
    number = 0.9 + 0.1 * sizes
    expected = (0.9 * before + 0.1 * sums) / number[:, None]
    torch.testing.assert_close(book.quantizer.embedding.weight.detach(), expected.float())


def test_only_dead_vectors_are_moved_to_z_of_the_batch() -> None:
    book = trainer(window=3)
    weight, average = book.quantizer.embedding.weight, book.averages[0].embedding.weight
    with torch.no_grad():
        weight[[2, 5]] = average[[2, 5]] = 100.0
    before = weight.detach().clone()
    z = random(4, 2, 8, 8)
    used = quantize_z(book.quantizer, z).indices.unique().tolist()
    assert used == [0, 1, 3, 4, 6, 7]
    for step in (1, 2, 3):
        assert torch.equal(weight, before)
        facts = book.update([quantize_z(book.quantizer, z)], range(4), step)
        assert facts["codebook_usage"] == 0.75
    moved = (weight != before).any(1).nonzero().flatten().tolist()
    assert moved == [2, 5]
    points = z.permute(0, 2, 3, 1).flatten(0, 2)
    assert all((points == vector).all(1).any() for vector in weight[[2, 5]])
    assert torch.equal(average[[2, 5]], weight[[2, 5]])


def test_perplexity_is_the_number_of_vectors_if_all_are_equally_frequent() -> None:
    book = trainer()
    with torch.no_grad():
        book.quantizer.embedding.weight[:4] = torch.tensor([[9.0, 9.0], [-9.0, 9.0], [9.0, -9.0], [-9.0, -9.0]])
    z = book.quantizer.embedding.weight.detach()[:4].t().reshape(1, 2, 2, 2)
    assert book.update([quantize_z(book.quantizer, z)], [0], 1)["perplexity"].item() == pytest.approx(4.0, rel=1e-6)


@pytest.mark.parametrize("decay", [None, pytest.param(0.8, marks=pytest.mark.slow)])
def test_a_vq_autoencoder_learns_and_uses_its_codebook(decay: float | None) -> None:
    options = ("loss.codebook.decay=0.8",) if decay else ()
    stage = vq_stage("loss.codebook.window=10", *options)
    found = [stage.train_step(micro_batches(step), step).losses for step in range(1, 41)]
    course = [losses["reconstruction"].item() for losses in found]
    assert sum(course[-5:]) / 5 < 0.3 * course[0], course
    assert found[-1]["codebook_usage"] > 0.5
    assert found[-1]["perplexity"] > 4
    assert ("codebook" in found[-1]) is (decay is None)


def test_micro_batches_add_up_to_their_batch() -> None:
    whole, parts = vq_stage("loss.codebook.decay=0.9"), vq_stage("loss.codebook.decay=0.9")
    for step in range(1, 6):
        together = whole.train_step(micro_batches(step), step).losses
        summed = parts.train_step(micro_batches(step, accumulation=2), step).losses
        assert together.keys() == summed.keys()
        for name, loss in together.items():
            assert summed[name].item() == pytest.approx(loss.item(), rel=1e-4, abs=1e-6), (step, name)


@pytest.mark.parametrize("options", [(), ("loss.codebook.decay=0.9",)])
def test_a_resumed_run_is_equal_bit_by_bit(options: tuple[str, ...]) -> None:
    stage, resumed = vq_stage(*options), vq_stage(*options)
    for step in range(1, 4):
        stage.train_step(micro_batches(step), step)
    resumed.load_state(copy.deepcopy(stage.state()))
    for step in range(4, 8):  # a revival among them
        losses = [one.train_step(micro_batches(step), step).losses for one in (stage, resumed)]
        assert losses[0] == losses[1]
    for name, weight in stage.average.state_dict().items():
        assert torch.equal(weight, resumed.average.state_dict()[name]), name


def test_the_codebook_of_a_pretrained_autoencoder_is_kept() -> None:
    stage = vq_stage("training.autoencoder.learning_rate=0", "loss.codebook.revive=false")
    before = stage.average.quantize.embedding.weight.clone()
    kept = AutoencoderStage(copy.deepcopy(stage.average), settings(*VQ), stage.accelerator, Colours(), pretrained=True)
    kept.begin(1)
    kept.optimizers["reconstruction"].param_groups[0]["lr"] = 0.0
    kept.train_step(micro_batches(1), 1)
    assert torch.equal(kept.average.quantize.embedding.weight, before)
    stage.train_step(micro_batches(1), 1)
    assert not torch.equal(stage.average.quantize.embedding.weight, before)


def test_vq_latents_are_measured_saved_and_used_for_training(tmp_path: Path) -> None:
    stage = vq_stage()
    for step in (1, 2, 3):
        stage.train_step(micro_batches(step), step)
    stage.finish(Colours())
    images = micro_batches(1)[0].images
    with torch.no_grad():
        latents = torch.cat([stage.average.encode(micro_batches(step)[0].images).mode() for step in (1, 2, 3)])[:12]
        assert latents.mean().item() == pytest.approx(0, abs=1e-3)
        assert latents.std().item() == pytest.approx(1, rel=1e-3)
        stage.save(tmp_path)
        loaded = Autoencoder.from_pretrained(tmp_path / "vae")
        assert loaded.config.shift_factor is None
        torch.testing.assert_close(loaded.encode(images).mode(), latents[:8], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(loaded.decode(latents[:8]), stage.average.decode(latents[:8]), rtol=1e-4, atol=1e-5)
    of = ("autoencoder.kind=vq", "autoencoder.codebook_size=16")
    stages = [
        unet_stage(tmp_path / "vae", *of, f"training.unet.cache_latents={cached}") for cached in ("true", "false")
    ]
    quick, slow = (one.train_step(micro_batches(1), 1).losses["loss"].item() for one in stages)
    assert quick == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ((*VQ, "loss.kl.weight=1e-3"), "loss.kl does not apply to an autoencoder of kind vq"),
        (("loss.codebook.weight=2",), "loss.codebook does not apply to an autoencoder of kind kl"),
        ((*VQ, "loss.codebook.decay=0.9", "loss.codebook.weight=2"), "remove weight"),
    ],
)
def test_options_without_effect_raise_an_error(overrides: tuple[str, ...], line: str) -> None:
    with pytest.raises(UserError, match=line):
        settings(*overrides)
