"""Diagnose training: what was seen, what it means, what to do.

A check is a pure function of the newest reports of a run, as `log.jsonl` has them, and of the configuration.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean, median

from ldm.config.root import Config
from ldm.config.training import StageConfig
from ldm.training.diagnostics.autoencoder import AUTOENCODER
from ldm.training.diagnostics.symptoms import LEARNING, LONG, SOON, Check, Diagnosis, Report, always, lasting

KEPT = 600  # newest reports that are enough for all checks
BLOCK = 5  # reports whose mean is taken where single ones are too noisy
CLIPPED = 3.0  # gradient norm, by the clip, that is worth a word where it is always cut
EXPLODING = 20.0  # gradient norm, by its median
RISEN = 3.0  # a loss, by the lowest there was
SKIPPED = 0.2  # share of steps that a gradient scaler skips
NO_BETTER = 0.95  # of the loss of an output of zeros
SCALED_STD = (0.7, 1.4)  # of the latents that a U-Net sees
OFF_CENTRE = 0.5  # their mean
ALIKE = 1e-4  # variance of contexts over the captions of a batch, by their mean square


def diagnose(stage: str, reports: Sequence[Report], config: Config) -> list[Diagnosis]:
    """Return the problems of a stage at the last of its reports, which are in order."""
    settings = getattr(config.training, stage)
    common = [*gradient(reports, settings), *rising(reports, settings)]
    return common + [found for check in CHECKS.get(stage, ()) for found in check(reports, config)]


def gradient(reports: Sequence[Report], settings: StageConfig) -> Iterator[Diagnosis]:
    """Find gradients that explode, are clipped in every step, or overflow in half precision."""
    norms = [report["gradient_norm"] for report in reports[-2 * BLOCK :] if "gradient_norm" in report]
    usual = median(norms) if len(norms) == 2 * BLOCK else 0.0
    if usual and norms[-1] > EXPLODING * usual:
        yield Diagnosis(
            "exploding gradient",
            f"its norm is {norms[-1]:.3g}, {norms[-1] / usual:.0f} times the usual one. Training is about to come "
            "apart: lower the learning rate, or warm up for longer",
        )
    limit, long = settings.gradient_clip, lasting(reports, "gradient_norm", LONG)
    cut = always(lasting(reports, "clipped", LONG), lambda share: share > 0.999)
    if limit is not None and cut and long and median(long) > CLIPPED * limit:
        yield Diagnosis(
            "gradient clipped in every step",
            f"its norm is {median(long):.3g} and gradient_clip {limit:g}, so that all steps are of one size, far from "
            f"a solution and near it. Set gradient_clip to about {2 * median(long):.2g}, or lower the learning rate",
        )
    if always(lasting(reports, "skipped", SOON), lambda share: share > SKIPPED):
        yield Diagnosis(
            "overflow in half precision",
            f"{reports[-1]['skipped']:.0%} of the last steps were skipped because gradients or losses were infinite "
            "in fp16. Use mixed_precision bf16 or no",
        )


def rising(reports: Sequence[Report], settings: StageConfig) -> Iterator[Diagnosis]:
    """Detect a reconstruction loss, or without one a loss, that rises."""
    name = "reconstruction" if any("reconstruction" in report for report in reports) else "loss"
    course = [(report["step"], report[name]) for report in reports if name in report]
    course = [(step, value) for step, value in course if step > settings.warmup_steps]
    size = max(BLOCK, math.ceil(SOON / settings.log_every))
    blocks = [course[at : at + size] for at in range(len(course) % size, len(course), size)]
    means = [fmean(value for _, value in block) for block in blocks]
    if len(means) < 2 or min(means) <= 0 or means[-1] < RISEN * min(means):
        return
    lowest = blocks[means.index(min(means))][-1][0]
    yield Diagnosis(
        f"rising {name}",
        f"{means[-1]:.3g}, and it was {min(means):.3g} at step {lowest}. Training comes apart: lower the learning "
        f"rate; the step saved nearest to {lowest} is better than the newest",
    )


def denoising(reports: Sequence[Report], config: Config) -> Iterator[Diagnosis]:
    """Detect a U-Net that is no better than an output of zeros."""
    settings = config.training.unet
    if reports[-1]["step"] <= settings.warmup_steps + LEARNING:
        return
    course = zip(lasting(reports, "loss", SOON), lasting(reports, "loss_of_zeros", SOON), strict=False)
    if always([loss / max(zeros, 1e-12) for loss, zeros in course], lambda share: share > NO_BETTER):
        yield Diagnosis(
            "the U-Net does not learn",
            f"its loss is {reports[-1]['loss']:.3g}, an output of zeros has "
            f"{reports[-1]['observed']['loss_of_zeros']:.3g}. Try another training.unet.learning_rate than "
            f"{settings.learning_rate:g}, and look whether weights are frozen that should not be",
        )


def scaled_latents(reports: Sequence[Report], config: Config) -> Iterator[Diagnosis]:
    """Detect latents without unit variance at the input of a U-Net."""
    if not lasting(reports, "latent_mean_square", SOON):
        return
    seen = reports[-1]["observed"]
    mean = fmean(seen["latent_mean"])
    deviation, (low, high) = max(fmean(seen["latent_mean_square"]) - mean**2, 0.0) ** 0.5, SCALED_STD
    if not low <= deviation <= high or abs(mean) > OFF_CENTRE:
        yield Diagnosis(
            "latents far from unit variance",
            f"on this data their mean is {mean:.2g} and their deviation {deviation:.2g}: the noise levels are not what "
            "they are called. The autoencoder's statistics were measured on other data: "
            "`ldm info VAE --measure DATA --write`, and train again from scratch",
        )


def contexts(reports: Sequence[Report], config: Config) -> Iterator[Diagnosis]:
    """Detect a text encoder with the same context for all captions."""
    spread, differing = lasting(reports, "context_spread", SOON), lasting(reports, "captions_that_differ", SOON)
    if always(spread, lambda share: share < ALIKE) and fmean(differing) > 0.25:
        text = config.training.unet.text_learning_rate
        rate = config.training.unet.learning_rate if text is None else text
        yield Diagnosis(
            "the text encoder has collapsed",
            f"contexts of different captions differ by {spread[-1]:.1g} of their size: the U-Net cannot use "
            f"the text. Train from scratch with text.source, or with training.unet.text_learning_rate below {rate:g}",
        )


CHECKS: dict[str, tuple[Check, ...]] = {
    "autoencoder": AUTOENCODER,
    "unet": (denoising, scaled_latents, contexts),
}
