"""The denoiser of a batch with all the guidance that its request asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ldm.checkpoint.parts import Parts
from ldm.conditioning.text.composition import Mixture
from ldm.conditioning.text.prompts import without_syntax
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.guidance import classifier_free, composed, thresholded, within
from ldm.diffusion.prediction import make_prediction
from ldm.errors import UserError
from ldm.generation.condition import Condition
from ldm.generation.conditioners import Conditioner
from ldm.generation.request import Request, Subject

# 99.5 of 100 numbers of an image's latents, which have unit variance over all images, are smaller: of 200 scenes in
# the built-in model half have them below 2.6, nine tenths below 3.3; a Gaussian has them below 2.8.
USUAL_LATENTS = 3.0
PIXELS = 1.0  # they are from -1 to 1, as in the paper

MakeDenoiser = Callable[..., Denoiser]  # of one condition, or of several whose images lie behind each other


def guided(
    make: MakeDenoiser,
    steer: Callable[[Denoiser], Denoiser],
    request: Request,
    condition: Condition,
    negative: Condition | None,
    mixture: Mixture | None,
    parts: Parts,
) -> Denoiser:
    """Conditions first, then what `steer` puts around them, both within the interval; the threshold is for all levels.

    `negative` has a row for each image, as `condition` has unless a `mixture` says whose its rows are. The request is
    resolved.
    """

    def led(scale: float | None) -> Denoiser:
        if negative is None:  # a resolved request then asks for no guidance by conditions
            return make(condition)
        assert scale is not None
        rescale, prediction = request.guidance_rescale, make_prediction(parts.diffusion.prediction)
        if mixture is None:
            return classifier_free(make, condition, negative, prediction, scale, rescale)
        return composed(make, condition, *mixture.to(parts.device), negative, prediction, scale, rescale)

    denoiser = steer(led(request.guidance_scale))
    if request.guidance_interval is not None:
        denoiser = within(denoiser, led(1.0), *request.guidance_interval)
    if request.threshold is not None:
        usual = PIXELS if parts.autoencoder.config.is_pixel_space else USUAL_LATENTS
        denoiser = thresholded(denoiser, request.threshold, request.threshold_range or usual)
    return denoiser


def steered(
    denoiser: Denoiser, request: Request, parts: Parts, subjects: Sequence[Subject], seeds: Sequence[int]
) -> Denoiser:
    """The denoiser led by the classifier and the CLIP of a request, if any."""
    if request.classifier is not None:
        denoiser = request.classifier.around(denoiser, request.labels(subjects), parts.device)
    if request.clip is not None:
        said = [without_syntax(subject, request) for subject in subjects]
        denoiser = request.clip.around(denoiser, said, seeds, parts.autoencoder, parts.device)
    return denoiser


def resolve_guides(request: Request, parts: Parts, conditioner: Conditioner) -> Request:
    """The request as the model's conditioner resolves it; UserError for guides that the model cannot follow.

    The classes of a classifier are not those of a model that knows none.
    """
    classifier = request.classifier
    own = classifier is not None and (parts.num_classes is None or bool(parts.texts))
    resolved = conditioner.resolve(replace(request, classes=()) if own else request)
    if classifier is not None:
        _check_classes(request)
        classes = classifier.numbers(parts, request.classes if own else resolved.classes)
        resolved = replace(resolved, classes=classes)
    if request.clip is not None and request.clip.prompt is None and not request.prompts:
        raise UserError("CLIP guidance needs a text, which this model draws none of: give CLIP its own (--clip-prompt)")
    return resolved


def _check_classes(request: Request) -> None:
    if not request.classes:
        raise UserError("a classifier leads to a class: give it (--class)")
    if request.prompts and len(request.classes) > 1:
        raise UserError(f"{len(request.classes)} classes with prompts: a classifier leads all images to one, give one")
