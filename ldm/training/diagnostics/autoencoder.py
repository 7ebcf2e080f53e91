"""Checks of an autoencoder's training: symptoms, thresholds and remedies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from ldm.config.root import Config
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.autoencoder.vq import VQConfig
from ldm.training.diagnostics.symptoms import (
    LEARNING,
    LONG,
    SOON,
    Check,
    Diagnosis,
    Report,
    always,
    channels,
    lasting,
    std_of_latents,
)
from ldm.training.losses.adversarial import ADAPTIVE_LIMIT

COLLAPSED_KL = 0.02  # nats per latent value: 4 % of a normal signal's variance
VANISHED = 1e-5  # standard deviation of the posterior, relative to the latents
RAW_STD = (0.01, 100.0)  # standard deviations of z that scaling can correct
CHANNEL_STD = (0.5, 2.0)  # of one channel, relative to all channels
WINS, IDLE = 0.99, 0.55  # accuracies of a discriminator
LOW_USE, LOW_PERPLEXITY = 0.5, 0.05  # shares of the codebook
NOT_LEARNED = 0.95  # of the distance to one colour


def kl(reports: Sequence[Report], config: Config) -> Iterator[Diagnosis]:
    """Find posteriors without information and posteriors without noise."""
    weight, course = config.loss.kl.weight, lasting(reports, "kl_channels", SOON)
    silent = [number for number, values in enumerate(zip(*course, strict=True)) if max(values) < COLLAPSED_KL]
    if silent:
        last = fmean(course[-1][number] for number in silent)
        yield Diagnosis(
            "KL collapse",
            f"the posterior equals the prior: {last:.1g} nats per value, less than {COLLAPSED_KL:g}, so these channels "
            f"hold no information. Reduce loss.kl.weight from {weight:g} to a tenth or less and train from scratch",
            channels(silent, len(course[-1])),
        )
    deviations = lasting(reports, "posterior_std", SOON)
    if deviations:
        shares = [a / b if b else 0.0 for a, b in zip(deviations[-1], std_of_latents(reports[-1]), strict=True)]
        gone = [number for number, share in enumerate(shares) if share < VANISHED]
        if gone:
            yield Diagnosis(
                "posterior without noise",
                f"its standard deviation is {min(shares):.1g} of the latents'. The KL term has no effect, so latents "
                f"may be less smooth and harder to generate. Increase loss.kl.weight from {weight:g}",
                channels(gone, len(shares)),
            )


def raw_latents(reports: Sequence[Report], config: Config) -> Iterator[Diagnosis]:
    """Find latents whose variance scaling cannot correct, before scaling."""
    if not lasting(reports, "latent_mean_square", SOON):
        return
    deviations, (low, high) = std_of_latents(reports[-1]), RAW_STD
    odd = [number for number, std in enumerate(deviations) if not low <= std <= high]
    if odd:
        codebook = config.autoencoder.bottleneck.has_codebook
        word = "loss.codebook.commitment_weight" if codebook else "loss.kl.weight"
        yield Diagnosis(
            "raw latents far from unit variance",
            f"standard deviation {deviations[odd[0]]:.3g}, outside {low:g} to {high:g}. Scaling can correct it, but "
            f"half precision may overflow or underflow. If it is large, increase {word}; if it is small, reduce it",
            channels(odd, len(deviations)),
        )


def measured_latents(reports: Sequence[Report], config: Config) -> Iterator[Diagnosis]:
    """Find channels whose scaled statistics differ from the others, at the end of training."""
    if "latent_channel_std" not in reports[-1] or config.autoencoder.statistics == "channel":
        return
    means, deviations = reports[-1]["latent_channel_mean"], reports[-1]["latent_channel_std"]
    scale, shift = reports[-1]["latent_std"], reports[-1]["latent_mean"]
    scaled, (low, high) = [std / scale for std in deviations], CHANNEL_STD
    odd = [number for number, std in enumerate(scaled) if not low <= std <= high]
    odd += [number for number, mean in enumerate(means) if number not in odd and abs(mean - shift) > scale]
    if odd:
        yield Diagnosis(
            "latents far from unit variance",
            f"after scaling, standard deviations by channel are {', '.join(f'{std:.2g}' for std in scaled)}, and means "
            f"differ from 0 by up to {max(abs(mean - shift) for mean in means) / scale:.2g}: the same noise is too "
            f"much for one channel and too little for another. {_remedy(config.autoencoder)}",
            channels(sorted(odd), len(scaled)),
        )


def _remedy(config: AutoencoderConfig) -> str:
    if config.bottleneck.has_codebook:
        return "A VQ autoencoder has one scale for all channels: try fewer latent_channels"
    return "Set autoencoder.statistics to channel and measure again with `ldm info --measure DATA --write`"


def discriminator(reports: Sequence[Report], config: Config) -> Iterator[Diagnosis]:
    """Find a discriminator that is too good or too bad, and an adaptive weight at its limit."""
    course = lasting(reports, "discriminator_accuracy", LONG)
    adversarial, last = config.loss.adversarial, reports[-1].get("observed", {})
    if course:
        seen = (
            f"for {LONG} steps it has classified {course[-1]:.1%} of the patches correctly; mean logits are "
            f"{last['logits_real']:.2g} for images and {last['logits_fake']:.2g} for reconstructions"
        )
        if always(course, lambda share: share > WINS):
            yield Diagnosis(
                "the discriminator wins",
                f"{seen}. It no longer helps the decoder and causes artefacts. Reduce loss.adversarial.learning_rate "
                "or discriminator_channels, or set a later start_step",
            )
        if always(course, lambda share: share < IDLE):
            yield Diagnosis(
                "the discriminator does not learn",
                f"{seen}. Unless reconstructions are perfect, increase loss.adversarial.learning_rate",
            )
    limit = 0.99 * ADAPTIVE_LIMIT * adversarial.weight  # of VQ; published KL models train at their lower limit
    if (
        adversarial.weight
        and adversarial.adaptive
        and always(lasting(reports, "adversarial_weight", SOON), lambda weight: weight >= limit)
    ):
        yield Diagnosis(
            "adaptive weight at its limit",
            f"it is {reports[-1]['adversarial_weight']:.3g}: the discriminator's gradient is negligible next to the "
            "reconstruction's. Set loss.adversarial.adaptive to false, with a small weight",
        )


def codebook(reports: Sequence[Report], config: Config) -> Iterator[Diagnosis]:
    """Find unused codebook vectors, and few vectors that nearly all latents share."""
    if not isinstance(config.autoencoder, VQConfig):
        return
    size, book = config.autoencoder.codebook_size, config.loss.codebook
    if reports[-1]["step"] <= book.start_steps + book.window:
        return
    usage, revived = lasting(reports, "codebook_usage", SOON), "" if book.revive else ", set loss.codebook.revive"
    advice = f"Set a smaller codebook_size{revived}, or set loss.codebook.decay to 0.99"
    if always(usage, lambda share: share < LOW_USE):
        yield Diagnosis(
            "dead codebook entries",
            f"{1 - usage[-1]:.0%} of the {size:,} vectors were not used in the last {book.window} steps. {advice}",
        )
    positions = (config.data.size // config.autoencoder.downsampling_factor) ** 2
    most = min(size, config.training.autoencoder.batch_size * positions)  # of one batch
    if always(perplexity := lasting(reports, "perplexity", SOON), lambda number: number < LOW_PERPLEXITY * most):
        yield Diagnosis(
            "low perplexity",
            f"{perplexity[-1]:.3g} of a possible {most:,}: nearly all latents share a few vectors, and images lose "
            f"detail. {advice}",
        )


def reconstruction(reports: Sequence[Report], config: Config) -> Iterator[Diagnosis]:
    """Find a reconstruction that is no better than one colour."""
    settings = config.training.autoencoder
    if reports[-1]["step"] <= settings.warmup_steps + LEARNING:
        return
    course = zip(lasting(reports, "reconstruction", SOON), lasting(reports, "one_colour", SOON), strict=False)
    if always([made / max(flat, 1e-12) for made, flat in course], lambda share: share > NOT_LEARNED):
        yield Diagnosis(
            "reconstruction does not fall",
            f"{reports[-1]['reconstruction']:.3g}, and one colour for the whole image would have "
            f"{reports[-1]['observed']['one_colour']:.3g}. Try another training.autoencoder.learning_rate than "
            f"{settings.learning_rate:g}, or set loss.reconstruction.kind to l2, which leaves this plateau sooner",
        )


AUTOENCODER: tuple[Check, ...] = (kl, raw_latents, measured_latents, discriminator, codebook, reconstruction)
