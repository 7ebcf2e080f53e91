"""The checks of an autoencoder's training: what is sick, from which number on, and what helps."""

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
from ldm.training.losses import ADAPTIVE_LIMIT

SAYS_NOTHING = 0.02  # nats of KL a latent value: 4 % of a normal signal's variance
VANISHED = 1e-5  # deviation of the posterior by that of the latents
RAW_STD = (0.01, 100.0)  # deviations of z that scaling can sensibly undo
CHANNEL_STD = (0.5, 2.0)  # of one channel, by that of all
WINS, IDLE = 0.99, 0.55  # accuracies of a discriminator
LOW_USE, LOW_PERPLEXITY = 0.5, 0.05  # shares of the codebook
NO_BETTER = 0.95  # of the distance to one colour


def kl(reports: Sequence[Report], config: Config) -> Iterator[Diagnosis]:
    """Posteriors that say nothing of the image, and posteriors without noise."""
    weight, course = config.loss.kl.weight, lasting(reports, "kl_channels", SOON)
    silent = [number for number, values in enumerate(zip(*course, strict=True)) if max(values) < SAYS_NOTHING]
    if silent:
        last = fmean(course[-1][number] for number in silent)
        yield Diagnosis(
            "KL collapse",
            f"the posterior is the prior: {last:.1g} nats a value, less than {SAYS_NOTHING:g}. The decoder is told "
            f"nothing by these channels. Lower loss.kl.weight, which is {weight:g}, to a tenth or less, and start anew",
            channels(silent, len(course[-1])),
        )
    deviations = lasting(reports, "posterior_std", SOON)
    if deviations:
        shares = [a / b if b else 0.0 for a, b in zip(deviations[-1], std_of_latents(reports[-1]), strict=True)]
        gone = [number for number, share in enumerate(shares) if share < VANISHED]
        if gone:
            yield Diagnosis(
                "posterior without noise",
                f"its deviation is {min(shares):.1g} of the latents' own. The KL term is not felt: latents need not be "
                f"smooth, and are harder to generate. Raise loss.kl.weight, which is {weight:g}",
                channels(gone, len(shares)),
            )


def raw_latents(reports: Sequence[Report], config: Config) -> Iterator[Diagnosis]:
    """Latents of an autoencoder in training, before anything scales them."""
    if not lasting(reports, "latent_mean_square", SOON):
        return
    deviations, (low, high) = std_of_latents(reports[-1]), RAW_STD
    odd = [number for number, std in enumerate(deviations) if not low <= std <= high]
    if odd:
        codebook = config.autoencoder.bottleneck.has_codebook
        word = "loss.codebook.commitment_weight" if codebook else "loss.kl.weight"
        yield Diagnosis(
            "raw latents far from unit variance",
            f"deviation {deviations[odd[0]]:.3g}, outside {low:g} to {high:g}. Scaling can undo it, half precision may "
            f"not survive it. Where it is large, raise {word}; where it is small, lower it",
            channels(odd, len(deviations)),
        )


def measured_latents(reports: Sequence[Report], config: Config) -> Iterator[Diagnosis]:
    """Channels of the scaled latents that are unlike the others, once the statistics were measured."""
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
            f"after scaling, deviations by channel are {', '.join(f'{std:.2g}' for std in scaled)}, and means up to "
            f"{max(abs(mean - shift) for mean in means) / scale:.2g} from 0: one level's noise is too much for one "
            f"channel and too little for another. {_remedy(config.autoencoder)}",
            channels(sorted(odd), len(scaled)),
        )


def _remedy(config: AutoencoderConfig) -> str:
    if config.bottleneck.has_codebook:
        return "A VQ autoencoder has one scale for all: fewer latent_channels may do as well"
    return "Set autoencoder.statistics to channel, and measure again with `ldm info --measure DATA --write`"


def discriminator(reports: Sequence[Report], config: Config) -> Iterator[Diagnosis]:
    """A discriminator that wins, or that tells nothing apart, and an adaptive weight that has reached its end."""
    course = lasting(reports, "discriminator_accuracy", LONG)
    adversarial, last = config.loss.adversarial, reports[-1].get("observed", {})
    if course:
        seen = (
            f"for {LONG} steps it has told {course[-1]:.1%} of the patches right; mean logits are "
            f"{last['logits_real']:.2g} for images and {last['logits_fake']:.2g} for reconstructions"
        )
        if always(course, lambda share: share > WINS):
            yield Diagnosis(
                "the discriminator wins",
                f"{seen}. What it says no longer helps the decoder, and artefacts come. Give it a lower "
                "loss.adversarial.learning_rate, fewer channels, or a later start_step",
            )
        if always(course, lambda share: share < IDLE):
            yield Diagnosis(
                "the discriminator tells nothing apart",
                f"{seen}. Unless reconstructions are perfect, it does not learn: raise loss.adversarial.learning_rate",
            )
    limit = 0.99 * ADAPTIVE_LIMIT * adversarial.weight
    if (
        adversarial.weight
        and adversarial.adaptive
        and always(lasting(reports, "adversarial_weight", SOON), lambda weight: weight >= limit)
    ):
        yield Diagnosis(
            "adaptive weight at its limit",
            f"it is {reports[-1]['adversarial_weight']:.3g}: next to the gradient of the reconstruction that of the "
            "discriminator is nothing. Set loss.adversarial.adaptive to false, with a small weight",
        )


def codebook(reports: Sequence[Report], config: Config) -> Iterator[Diagnosis]:
    """Vectors of a codebook that nothing is near to, or few that most is near to."""
    if not isinstance(config.autoencoder, VQConfig):
        return
    size, book = config.autoencoder.codebook_size, config.loss.codebook
    if reports[-1]["step"] <= book.start_steps + book.window:
        return
    usage, revived = lasting(reports, "codebook_usage", SOON), "" if book.revive else ", set loss.codebook.revive"
    advice = f"Take a smaller codebook_size{revived}, or loss.codebook.decay 0.99 in place of its loss"
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
            f"{perplexity[-1]:.3g} of a possible {most:,}: nearly all latents are a few of the vectors, and images "
            f"lose detail. {advice}",
        )


def reconstruction(reports: Sequence[Report], config: Config) -> Iterator[Diagnosis]:
    """A reconstruction that has not become better than one colour."""
    settings = config.training.autoencoder
    if reports[-1]["step"] <= settings.warmup_steps + LEARNING:
        return
    course = zip(lasting(reports, "reconstruction", SOON), lasting(reports, "one_colour", SOON), strict=False)
    if always([made / max(flat, 1e-12) for made, flat in course], lambda share: share > NO_BETTER):
        yield Diagnosis(
            "reconstruction does not fall",
            f"{reports[-1]['reconstruction']:.3g}; one colour all over the image would have "
            f"{reports[-1]['observed']['one_colour']:.3g}. Nothing was learnt: try another "
            f"training.autoencoder.learning_rate than {settings.learning_rate:g}, or kind l2 of loss.reconstruction, "
            "which leaves this plateau sooner than l1",
        )


AUTOENCODER: tuple[Check, ...] = (kl, raw_latents, measured_latents, discriminator, codebook, reconstruction)
