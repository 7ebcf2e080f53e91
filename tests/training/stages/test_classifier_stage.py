"""A classifier on noisy latents: training, saving, resuming, and errors for invalid configurations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tiny_stages import NAMES, Kinds, changed, weights

from ldm import config
from ldm.checkpoint.classifiers import TrainedClassifier
from ldm.config.root import Config
from ldm.data.loader import Batch, BatchShare, TrainingData
from ldm.errors import UserError
from ldm.training.plan import plan
from ldm.training.runs.run import Run
from ldm.training.stages.classifier import ClassifierStage
from ldm.training.stages.stage import StartingPoint
from ldm.training.stages.unet import UNetStage

SMALL = ("text=null", "unet=null", "training.classifier.batch_size=8")
NETWORK = (
    "{num_classes: 4, block_out_channels: [16, 32], attention_levels: [1], norm_num_groups: 8, layers_per_block: 1}"
)


class Shades(Kinds):
    """The flat images, in four classes of neighbouring colours."""

    def label(self, index: int) -> int:
        return index // 3


def settings(*overrides: str) -> Config:
    return config.load("tiny", [*SMALL, f"classifier={NETWORK}", "training.classifier.cache_latents=true", *overrides])


def make(run: Path, vae: str | None, *overrides: str, init: str | None = None) -> ClassifierStage:
    torch.manual_seed(0)
    asked, folder = settings(*overrides), Run(run, resume=True)
    ClassifierStage.check(asked, folder, StartingPoint(vae=vae, init=init))
    return ClassifierStage.build(asked, Shades(), Accelerator(cpu=True), folder, StartingPoint(vae=vae, init=init))


def batch(stage: ClassifierStage, step: int) -> list[Batch]:
    return [TrainingData(Shades(), settings().data, BatchShare(8), 0, stage.needs_images, classes=True)[step, 0]]


def test_it_trains_saves_and_resumes_exactly(vae: str, tmp_path: Path) -> None:
    stage = make(tmp_path, vae)
    before = weights(stage, "classifier")
    losses = [stage.train_step(batch(stage, step), step).losses for step in range(1, 4)]
    assert losses[0]["loss"].item() == pytest.approx(torch.tensor(4.0).log().item(), rel=1e-4)
    assert losses[-1].keys() >= {"accuracy_t0", "accuracy_t250", "accuracy_t500", "accuracy_t750"}
    assert changed(before, weights(stage, "classifier"))
    run = Run(tmp_path, resume=True)
    run.save(3, stage.save, stage.state(), settings())
    went_on = make(tmp_path, None)
    saved = run.load_state()
    assert saved is not None
    went_on.load_state(saved.state)
    for each in (stage, went_on):
        each.begin(4)
    ours, theirs = (each.train_step(batch(each, 4), 4).losses["loss"] for each in (stage, went_on))
    assert torch.equal(ours, theirs)
    loaded = TrainedClassifier.from_pretrained(tmp_path)
    assert loaded.class_names == NAMES
    assert changed(before, list(loaded.network.parameters()))
    assert stage.validate(batch(stage, 0)[0]).losses.mean().isfinite()


def test_accuracies_are_those_of_their_quarter_of_the_steps(vae: str, tmp_path: Path) -> None:
    stage = make(tmp_path, vae)
    start = {name: share.item() for name, share in stage.accuracies().items()}
    assert start == dict.fromkeys(("accuracy_t0", "accuracy_t250", "accuracy_t500", "accuracy_t750"), 0.25)
    right, t = torch.tensor([True, False, True, True]), torch.tensor([0, 249, 750, 999])
    stage._count(right, t)
    found = [share.item() for share in stage.accuracies().values()]
    assert found == pytest.approx([1.25 / 3, 0.25, 0.25, 2.25 / 3])


def test_cached_latents_train_as_encoded_ones_do(vae: str, tmp_path: Path) -> None:
    cached, encoding = make(tmp_path / "a", vae), make(tmp_path / "b", vae, "training.classifier.cache_latents=false")
    assert (cached.needs_images, encoding.needs_images) == (False, True)
    for step in (1, 2):
        quick, slow = (stage.train_step(batch(stage, step), step).losses["loss"].item() for stage in (cached, encoding))
        assert quick == pytest.approx(slow, rel=1e-5)


def test_it_starts_from_a_trained_one(vae: str, tmp_path: Path) -> None:
    first = make(tmp_path / "a", vae)
    first.train_step(batch(first, 1), 1)
    Run(tmp_path / "a", resume=True).save(1, first.save, first.state(), settings())
    second = make(tmp_path / "b", None, init=str(tmp_path / "a"))
    assert not changed(list(first.emas[0].network.parameters()), weights(second, "classifier"))


@pytest.mark.slow
def test_it_learns_the_classes_of_pixels_first_where_there_is_little_noise(tmp_path: Path) -> None:
    pixels = ("autoencoder={kind: identity, latent_channels: 3}", "loss.kl={}", "classifier.in_channels=3")
    pixels = (*pixels, "training.classifier.cache_latents=false", "training.classifier.learning_rate=0.003")
    stage = make(tmp_path, None, *pixels)
    losses = [stage.train_step(batch(stage, step), step).losses for step in range(1, 41)]
    assert losses[-1]["accuracy_t0"] > 0.6  # guessing finds a quarter
    assert losses[-1]["accuracy_t0"] > losses[-1]["accuracy_t750"]
    stage.save(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["classifier", "scheduler"]
    assert TrainedClassifier.from_pretrained(tmp_path / "saved").autoencoder.config.kind == "identity"


def test_its_cost_is_reported_before_training() -> None:
    report = plan("classifier", settings("data.scenes.num=64"), "scenes")
    assert "parameters of the classifier" in report


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("classifier=null",), "this configuration has no classifier: add the section classifier"),
        (("classifier.num_classes=5",), "classifier.num_classes is 5, but the data has 4 classes"),
        (("classifier.in_channels=3",), "classifier.in_channels is 3, but autoencoder.latent_channels is 4"),
        (("unet={cross_attention_dim: null, attention: plain}",), "unet and classifier are both set"),
        (("data.random_flip=true",), "do not support data.random_flip"),
    ],
)
def test_untrainable_configurations_raise_an_error(
    vae: str, tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make(tmp_path, vae, *overrides)


def test_an_autoencoder_is_needed_and_a_classifier_to_start_from(vae: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train-classifier needs an autoencoder: --vae"):
        make(tmp_path, None)
    with pytest.raises(UserError, match="holds no classifier"):
        make(tmp_path, vae, init=vae)
    with pytest.raises(UserError, match="this configuration has no denoiser: add a section unet"):
        UNetStage.check(settings(), Run(tmp_path, resume=True), StartingPoint(vae=vae))
