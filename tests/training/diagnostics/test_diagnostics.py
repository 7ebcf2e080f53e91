"""What each diagnosis is made from: healthy numbers say nothing, sick ones say the sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm import config
from ldm.conditioning.text.inputs import observe_contexts
from ldm.config.root import Config
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.autoencoder.kl import DiagonalGaussian
from ldm.training.diagnostics import observations
from ldm.training.diagnostics.symptoms import Report
from ldm.training.diagnostics.unet import KEPT, diagnose
from ldm.training.diagnostics.watch import FORGOTTEN, Watch
from ldm.training.logging.log import Log, read_log
from ldm.training.losses.adversarial import observe_logits
from ldm.training.losses.kl import KLTerm

VQ = ("autoencoder.kind=vq", "autoencoder.codebook_size=1000")
GAN = ("loss.adversarial.weight=0.5", "training.autoencoder.max_steps=2000")
HEALTHY: dict[str, Report] = {
    "autoencoder": {
        "loss": 0.02,
        "reconstruction": 0.018,
        "gradient_norm": 0.4,
        "perplexity": 400.0,
        "codebook_usage": 0.9,
        "discriminator": 0.8,
        "adversarial_weight": 3.0,
        "skipped": 0.0,
        "observed": {
            "clipped": 0.0,
            "kl_channels": [2.9, 3.3, 4.0, 3.3],
            "posterior_std": [0.05, 0.05, 0.05, 0.05],
            "latent_mean": [-0.1, 0.3, 0.6, -0.1],
            "latent_mean_square": [0.7, 1.6, 2.9, 1.7],
            "one_colour": 0.19,
            "logits_real": 0.4,
            "logits_fake": -0.3,
            "discriminator_accuracy": 0.75,
        },
    },
    "unet": {
        "loss": 0.3,
        "gradient_norm": 0.4,
        "observed": {
            "clipped": 0.02,
            "loss_of_zeros": 1.0,
            "latent_mean": [-0.1, 0.1, 0.2, -0.2],
            "latent_mean_square": [0.8, 1.1, 1.2, 0.9],
            "context_spread": 0.02,
            "captions_that_differ": 0.9,
        },
    },
}


def course(stage: str, change: Report | None = None, steps: int = 1000, every: int = 10) -> list[Report]:
    """Reports of a run in which one thing or another was so all the time."""
    report, change = HEALTHY[stage], change or {}
    whole = {**report, **change, "observed": report["observed"] | change.get("observed", {})}
    return [{"step": step, **whole} for step in (1, *range(every, steps + 1, every))]


def asked(*overrides: str) -> Config:
    return config.load("tiny", list(overrides))


def names(stage: str, reports: list[Report], *overrides: str) -> list[str]:
    return [found.title for found in diagnose(stage, reports, asked(*overrides))]


@pytest.mark.parametrize("every", [1, 10, 400])
@pytest.mark.parametrize("overrides", [(), VQ, GAN])
def test_healthy_numbers_give_no_warning(overrides: tuple[str, ...], every: int) -> None:
    for stage in HEALTHY:
        reports = course(stage, every=every)
        for end in range(1, len(reports), 1 + len(reports) // 20):
            assert names(stage, reports[:end][-KEPT:], *overrides) == []


SICK = [
    ("autoencoder", (), {"kl_channels": [3e-4] * 4}, "KL collapse in all 4 channels", "0.0003 nats per value"),
    ("autoencoder", (), {"kl_channels": [3.0, 1e-3, 3.0, 5e-4]}, "KL collapse in channels 1, 3", "from 1e-06"),
    (
        "autoencoder",
        (),
        {"posterior_std": [0.05, 0.05, 1e-6, 0.05]},
        "posterior without noise in channel 2",
        "Increase loss.kl.weight",
    ),
    (
        "autoencoder",
        (),
        {"latent_mean_square": [1e6, 1.6, 2.9, 1.7]},
        "raw latents far from unit variance in channel 0",
        "deviation 1e+03, outside 0.01 to 100",
    ),
    (
        "autoencoder",
        GAN,
        {"discriminator_accuracy": 0.998, "logits_real": 5.2, "logits_fake": -4.9},
        "the discriminator wins",
        "99.8% of the patches correctly; mean logits are 5.2 for images and -4.9",
    ),
    (
        "autoencoder",
        GAN,
        {"discriminator_accuracy": 0.51},
        "the discriminator does not learn",
        "increase loss.adversarial.learning_rate",
    ),
    ("autoencoder", (*GAN, *VQ), {"": {"adversarial_weight": 5000.0}}, "adaptive weight at its limit", "it is 5e+03"),
    ("autoencoder", VQ, {"": {"codebook_usage": 0.2}}, "dead codebook entries", "80% of the 1,000 vectors"),
    ("autoencoder", VQ, {"": {"perplexity": 12.0}}, "low perplexity", "12 of a possible 1,000"),
    (
        "autoencoder",
        (),
        {"one_colour": 0.018},
        "reconstruction does not fall",
        "0.018, and one colour for the whole image",
    ),
    ("autoencoder", (), {"": {"skipped": 0.5}}, "overflow in half precision", "50% of the last steps"),
    ("unet", (), {"": {"loss": 0.99}}, "the U-Net does not learn", "0.99, an output of zeros has 1."),
    (
        "unet",
        (),
        {"latent_mean_square": [0.1, 0.1, 0.1, 0.12]},
        "latents far from unit variance",
        "their deviation 0.32",
    ),
    ("unet", (), {"latent_mean": [0.7] * 4, "latent_mean_square": [1.5] * 4}, "latents far from unit", "mean is 0.7"),
    ("unet", (), {"context_spread": 1e-6}, "the text encoder has collapsed", "differ by 1e-06 of their size"),
    (
        "unet",
        (),
        {"clipped": 1.0, "": {"gradient_norm": 12.0}},
        "gradient clipped in every step",
        "its norm is 12 and gradient_clip 1",
    ),
]


@pytest.mark.parametrize(("stage", "overrides", "change", "name", "words"), SICK, ids=[f"{s[0]}-{s[3]}" for s in SICK])
def test_sick_numbers_say_what_was_seen_and_what_to_do(
    stage: str, overrides: tuple[str, ...], change: dict[str, Any], name: str, words: str
) -> None:
    observed = {key: value for key, value in change.items() if key}
    reports = course(stage, {**change.get("", {}), "observed": observed})
    [found] = diagnose(stage, reports, asked(*overrides))
    assert found.title.startswith(name)
    assert words in found.text
    assert "\n" not in found.text
    # Not yet, and not where the last report is well again.
    assert names(stage, reports[:3], *overrides) == []
    assert names(stage, [*reports, *course(stage, steps=1010)[-1:]], *overrides) == []


def test_equal_captions_may_have_equal_contexts() -> None:
    reports = course("unet", {"observed": {"context_spread": 0.0, "captions_that_differ": 0.1}})
    assert names("unet", reports) == []


def test_a_loss_that_rises_and_a_gradient_that_explodes_are_seen_against_what_they_were() -> None:
    reports = course("unet")
    for report in reports[-6:]:
        report["loss"] = 0.95
    [found] = diagnose("unet", reports, asked())
    assert found.name == "rising loss"
    assert found.text.startswith("0.95, and it was 0.3 at step")
    reports = course("unet")
    reports[-1]["gradient_norm"] = 40.0
    [found] = diagnose("unet", reports, asked())
    assert (found.name, "100 times the usual one" in found.text) == ("exploding gradient", True)


def test_channels_of_different_scale_are_reported_unless_each_is_scaled() -> None:
    facts = {"latent_mean": 0.0, "latent_std": 2.0, "latent_channel_mean": [0.0] * 4}
    healthy = {"step": 1010, **facts, "latent_channel_std": [2.0, 1.5, 2.4, 2.1]}
    sick = healthy | {"latent_channel_std": [0.3, 2.0, 2.5, 2.4]}
    shifted = healthy | {"latent_channel_mean": [0.0, 5.0, 0.0, 0.0]}
    assert names("autoencoder", [*course("autoencoder"), healthy]) == []
    [found] = diagnose("autoencoder", [*course("autoencoder"), sick], asked())
    assert found.title == "latents far from unit variance in channel 0"
    assert "0.15, 1, 1.2, 1.2" in found.text
    assert "autoencoder.statistics to channel" in found.text
    assert names("autoencoder", [*course("autoencoder"), shifted]) == ["latents far from unit variance in channel 1"]
    assert names("autoencoder", [*course("autoencoder"), sick], "autoencoder.statistics=channel") == []
    [found] = diagnose("autoencoder", [*course("autoencoder"), sick], asked(*VQ))
    assert "one scale for all" in found.text


def watched(path: Path, start: int = 0) -> Watch:
    return Watch(Log(path, start, 10_000), "autoencoder", asked(), path)


def follow(watch: Watch, reports: list[Report]) -> None:
    for report in reports:
        watch.log.note(report)
        watch.add(report)


def diagnoses(path: Path) -> list[tuple[int, str]]:
    return [(line["step"], line.get("found", line.get("gone"))) for line in read_log(path) if "loss" not in line]


def test_each_diagnosis_is_reported_once_until_it_changes_and_again_when_it_returns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, healthy = tmp_path / "log.jsonl", course("autoencoder", steps=1200)
    one, two = (
        course("autoencoder", {"observed": {"kl_channels": values}}, steps=1200)
        for values in ([1e-3, 3, 3, 3], [1e-3, 1e-3, 3, 3])
    )
    reports = [*healthy[:21], *one[21:41], *two[41:61], *healthy[61:91], *one[91:]]
    watch = watched(path)
    assert watch.summary() == "diagnosis: nothing unusual"
    follow(watch, reports[:61])
    first, both = "KL collapse in channel 0", "KL collapse in channels 0, 1"
    assert diagnoses(path) == [(260, first), (460, both)]
    assert "step 260: KL collapse in channel 0: the posterior equals the prior: 0.001 nats" in capsys.readouterr().err
    assert watch.summary().splitlines()[1].startswith(f"  {both} (since step 260): the posterior")
    follow(watch, reports[61:91])
    assert diagnoses(path)[2:] == [(700, "KL collapse")]
    assert watch.summary().splitlines()[1:] == [f"  {both} (steps 260 to 600 only)"]
    follow(watch, reports[91:])
    assert diagnoses(path)[3:] == [(960, first)]


def test_a_resumed_run_does_not_repeat_a_diagnosis(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    reports = course("autoencoder", {"observed": {"kl_channels": [1e-3] * 4}}, steps=400)
    follow(watched(path), reports[:21])
    before = diagnoses(path)
    again = watched(path, start=200)
    follow(again, reports[21:])
    assert diagnoses(path) == before == [(60, "KL collapse in all 4 channels")]
    assert "since step 60" in again.summary()
    assert FORGOTTEN > 1


def test_what_is_observed_of_a_posterior_is_its_closed_form() -> None:
    means, deviations = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.1])
    moments = torch.cat([means, 2 * deviations.log()]).view(1, 4, 1, 1).expand(3, 4, 5, 5)
    posterior = DiagonalGaussian(moments, AutoencoderConfig(latent_channels=2))
    kl = KLTerm.forward(None, None, posterior, posterior.mean)
    found = observations.of_latents(posterior.mean, posterior.variance) | kl._asdict()
    expected = [0.0, 0.5 * (4 + 0.01 - 1 - 2 * math.log(0.1))]
    assert found["kl_channels"].tolist() == pytest.approx(expected, abs=1e-6)
    assert found["posterior_std"].tolist() == pytest.approx([1.0, 0.1])
    assert found["latent_mean"].tolist() == [0.0, 2.0]
    assert found["latent_mean_square"].tolist() == pytest.approx([1.0, 4.01])
    torch.testing.assert_close(posterior.kl(), 25 * torch.full((3,), sum(expected)))


def test_what_is_observed_of_logits_and_contexts_is_their_closed_form() -> None:
    found = observe_logits(torch.tensor([2.0, 2.0, -1.0]), torch.tensor([-3.0, -3.0, -3.0]))
    assert [value.item() for value in found.values()] == pytest.approx([1.0, -3.0, 5 / 6])
    ids = torch.tensor([[1, 2], [1, 2], [1, 3], [4, 2]])
    found = observe_contexts(torch.ones(4, 2, 3), ids)
    assert found["context_spread"] == 0
    assert found["captions_that_differ"] == 0.5
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0]).view(4, 1, 1).expand(4, 2, 3)
    assert observe_contexts(3 + signs, ids)["context_spread"].item() == pytest.approx(1 / 10)


def test_reports_are_lines_of_json(tmp_path: Path) -> None:
    with Log(tmp_path / "log.jsonl", 0, 10) as log:
        log.announce(3, {"found": "x", "text": "y"}, "x: y")
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 3, "found": "x", "text": "y"}
