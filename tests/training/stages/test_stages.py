"""What one optimiser step of each stage does, on a source of a few flat images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_stages import PLAYING, Colours, autoencoder_stage, changed, micro_batches, settings, unet_stage, weights

from ldm.data.cached import CachedData
from ldm.data.random import StepRandom
from ldm.errors import UserError
from ldm.generation import TextToImage
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.processes import ProcessShare
from ldm.training.cache.caching import cache_in
from ldm.training.cache.fingerprints import Encoders
from ldm.training.latents import measure
from ldm.training.losses.term import total_loss
from ldm.training.runs.run import Run
from ldm.training.stages.stage import StartingPoint
from ldm.training.stages.unet import UNetStage

PENALISED = (*PLAYING, *(f"loss.adversarial.{o}" for o in ("discriminator_norm=group", "r1_weight=2", "r1_every=3")))


def test_the_discriminator_rests_until_its_start_step() -> None:
    stage = autoencoder_stage(*PLAYING)
    before = weights(stage, "discriminator")
    losses = stage.train_step(micro_batches(1), 1).losses
    assert not changed(before, weights(stage, "discriminator"))
    assert losses.keys().isdisjoint({"discriminator", "generator"})
    losses = stage.train_step(micro_batches(2), 2).losses
    assert changed(before, weights(stage, "discriminator"))
    assert losses.keys() >= {"discriminator", "generator", "adversarial_weight"}
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_the_generators_loss_leaves_no_gradient_in_the_discriminator() -> None:
    stage = autoencoder_stage(*PLAYING)
    [batch] = micro_batches(2)
    output = stage.networks["reconstruction"](batch.images, torch.randn(8, 4, 8, 8))
    total_loss(list(stage.terms.values()), batch.images, output)["generator"].backward()
    assert all(weight.grad is None for weight in stage.networks["discriminator"].parameters())
    assert all(weight.requires_grad for weight in stage.networks["discriminator"].parameters())
    assert stage.average.last_layer.grad is None


@pytest.mark.parametrize("adversarial", [False, True])
def test_micro_batches_add_up_to_their_batch(adversarial: bool) -> None:
    # The adaptive weight is that of each micro-batch, so it is off here; group norm knows nothing of the batch.
    options = [*PENALISED, "loss.adversarial.adaptive=false"] if adversarial else []
    whole, parts = autoencoder_stage(*options), autoencoder_stage(*options)
    for step in (1, 2, 3):
        together = whole.train_step(micro_batches(step), step).losses
        summed = parts.train_step(micro_batches(step, accumulation=2), step).losses
        assert together.keys() == summed.keys()
        for name, loss in together.items():
            assert summed[name].item() == pytest.approx(loss.item(), rel=1e-4, abs=1e-6), (step, name)


def test_the_gradient_penalty_comes_every_so_many_steps_weighed_as_many_times() -> None:
    stage = autoencoder_stage(*PENALISED)
    assert {step for step in range(1, 8) if "r1" in stage.train_step(micro_batches(step), step).losses} == {3, 6}
    [batch] = micro_batches(9)
    terms, _ = stage.terms["adversarial"]._discriminator_terms(batch.images, -batch.images, 9)
    _, penalties = stage.networks["discriminator"](batch.images, 8)
    assert terms["r1"].item() == pytest.approx(3 * 2 / 2 * penalties.mean().item())


@pytest.mark.slow
def test_averaged_latents_learn_to_decode_to_averaged_images() -> None:
    stage = autoencoder_stage("loss.equivariance.weight=1", "training.autoencoder.learning_rate=1e-3")
    found = [stage.train_step(micro_batches(1), step).losses["equivariance"].item() for step in range(1, 21)]
    assert found[-1] < 0.5 * found[0]
    assert "equivariance" not in autoencoder_stage().train_step(micro_batches(1), 1).losses


def test_the_learned_log_variance_learns() -> None:
    stage = autoencoder_stage("loss.reconstruction.learned_log_variance=true")
    for step in (1, 2, 3):
        stage.train_step(micro_batches(step), step)
    network = stage.networks["reconstruction"]
    assert network.log_variance.item() != 0.0
    assert not autoencoder_stage().networks["reconstruction"].log_variance.requires_grad


def test_latents_have_the_measured_statistics(tmp_path: Path) -> None:
    stage = autoencoder_stage()
    facts = measure(stage.average, Colours(), 32, 12, stage.accelerator)
    images = torch.cat([batch.images for step in (1, 2, 3) for batch in micro_batches(step)])[:12]
    assert facts["latent_std"] > 0
    with torch.no_grad():
        noise = torch.randn(200, 12, 4, 8, 8)
        posterior = stage.average.encode(images)
        latents = torch.stack([posterior.sample(noise=draw) for draw in noise])
    assert latents.mean().item() == pytest.approx(0, abs=0.01)
    assert latents.std().item() == pytest.approx(1, rel=0.01)
    stage.save(tmp_path)
    loaded = Autoencoder.from_pretrained(tmp_path / "vae")
    torch.testing.assert_close(loaded.encode(images).mode(), posterior.mode(), rtol=1e-4, atol=1e-5)


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    stage = autoencoder_stage()
    stage.finish(Colours())
    stage.save(tmp_path)
    return tmp_path / "vae"


def test_cached_latents_train_as_encoded_ones_do(measured: Path) -> None:
    cached = unet_stage(measured, "training.unet.cache_latents=true")
    encoding = unet_stage(measured, "training.unet.cache_latents=false")
    assert isinstance(cached.context.cache, CachedData)
    assert encoding.context.cache is None
    for step in (1, 2, 3):
        quick = cached.train_step(micro_batches(step, images=False), step).losses["loss"]
        slow = encoding.train_step(micro_batches(step), step).losses["loss"]
        assert quick.item() == pytest.approx(slow.item(), rel=1e-5)


def test_the_cache_is_found_again_by_what_it_was_made_of(measured: Path) -> None:
    stage = unet_stage(measured, "training.unet.cache_latents=true")
    path = stage.context.cache.folder / stage.context.cache.shards[0].name
    written = path.stat().st_mtime_ns
    assert unet_stage(measured, "training.unet.cache_latents=true").context.cache.folder == path.parent
    assert path.stat().st_mtime_ns == written
    with torch.no_grad():
        stage.pipeline.autoencoder.encoder.conv_in.bias += 1
    encoders, device = Encoders(stage.pipeline.autoencoder), stage.accelerator.device
    second = cache_in(path.parent.parent, Colours(), settings().data, encoders, ProcessShare(), device)
    assert second.folder != path.parent


def test_text_encoder_and_unet_are_trained_together_and_averaged(measured: Path) -> None:
    stage = unet_stage(measured)
    before, averaged = weights(stage, "unet"), [w.clone() for w in stage.emas[0].network.parameters()]
    for step in (1, 2, 3):  # zeros at the output, then at the ends of the residual branches, come to life first
        stage.train_step(micro_batches(step), step)
    names = [name for name, _ in stage.networks["unet"].named_parameters()]
    moved = {name for name, a, b in zip(names, before, weights(stage, "unet"), strict=True) if not torch.equal(a, b)}
    assert any(name.startswith("text_encoder.") for name in moved)
    assert any(name.startswith("unet.") for name in moved)
    assert changed(averaged, list(stage.emas[0].network.parameters()))
    assert all(weight.grad is None for weight in stage.pipeline.autoencoder.parameters())


@pytest.mark.slow
def test_the_configured_share_of_captions_is_dropped(measured: Path) -> None:
    for share in (0.0, 0.5, 1.0):
        stage = unet_stage(measured, f"training.unet.condition_dropout={share}")
        batches = [batch for step in range(1, 101) for batch in micro_batches(step, images=False)]
        captions = [caption for batch in batches for caption in stage.conditionings[0].captions(batch, stage.context)]
        dropped = captions.count("") / len(captions)
        assert dropped == pytest.approx(share, abs=4 * (share * (1 - share) / len(captions)) ** 0.5)
        assert set(captions) - {""} <= {f"colour number {i}" for i in range(12)}


def noise_of(measured: Path, *overrides: str) -> tuple[torch.Tensor, torch.Tensor]:
    [batch] = micro_batches(5, images=False)
    return unet_stage(measured, *overrides)._noise(batch, (4, 8, 8))


def test_offset_noise_and_input_perturbation_use_separate_random_numbers(measured: Path) -> None:
    plain, seen = noise_of(measured)
    assert torch.equal(plain, StepRandom(0).normal("noise", 5, range(8), (4, 8, 8)))
    assert torch.equal(plain, seen)
    offset, seen = noise_of(measured, "diffusion.offset_noise=0.1")
    expected = 0.1 * StepRandom(0).normal("offset_noise", 5, range(8), (4, 1, 1)).expand(8, 4, 8, 8)
    torch.testing.assert_close(offset - plain, expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(offset, seen)
    regressed, perturbed = noise_of(measured, "diffusion.input_perturbation=0.1", "diffusion.offset_noise=0.1")
    assert torch.equal(regressed, offset)
    expected = 0.1 * StepRandom(0).normal("input_perturbation", 5, range(8), (4, 8, 8))
    torch.testing.assert_close(perturbed - regressed, expected, rtol=1e-4, atol=1e-6)


FLOW = ("diffusion.prediction=flow", "diffusion.schedule={kind: flow, shift: 3, training_times: logit_normal}")
LEARNED = ("diffusion.learned_variance=true", "unet.out_channels=8")


@pytest.mark.parametrize("overrides", [FLOW, LEARNED, ("diffusion.weighting.kind=vlb",)])
def test_a_trained_model_is_saved_and_generates(measured: Path, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    stage = unet_stage(measured, *overrides)
    before = weights(stage, "unet")
    losses = [stage.train_step(micro_batches(step), step).losses["loss"] for step in (1, 2, 3)]
    assert all(torch.isfinite(loss) for loss in losses)
    assert changed(before, weights(stage, "unet"))
    stage.save(tmp_path / "saved")
    pipe = TextToImage.from_pretrained(tmp_path / "saved", device="cpu")
    assert pipe.pipeline.diffusion == settings(*overrides).diffusion
    for sampler in ("ddim", "ddpm"):
        [image] = pipe("colour number 3", num_inference_steps=2, sampler=sampler)
        assert image.size == (32, 32)


def test_the_variance_half_of_the_output_is_trained(measured: Path) -> None:
    stage = unet_stage(measured, *LEARNED)
    stage.train_step(micro_batches(1), 1)
    moved = stage.networks["unet"].unet.conv_out.weight.detach().abs().flatten(1).amax(1)
    assert (moved > 0).all()  # all eight channels left their zeros


def test_a_model_that_cannot_be_saved_raises_an_error_before_data_is_prepared(measured: Path, tmp_path: Path) -> None:
    invalid = settings("diffusion.prediction=v", "diffusion.schedule={kind: flow}")
    with pytest.raises(UserError, match=r"diffusion.prediction is v"):
        UNetStage.check(invalid, Run(tmp_path / "run", resume=False), StartingPoint(vae=str(measured)))
