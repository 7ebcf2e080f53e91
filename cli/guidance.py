"""The options of `ldm generate` that lead an image, besides scale and negative prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.generation import ClassifierGuidance, ClipGuidance, Request

Rescale = Annotated[
    float, typer.Option("--cfg-rescale", help="Share of the contrast that guidance adds to take back, 0 to 1.")
]
Interval = Annotated[
    str | None,
    typer.Option("--cfg-interval", metavar="LOW:HIGH", help="Guide where sigma / alpha is above LOW and up to HIGH."),
]
Threshold = Annotated[
    float | None, typer.Option(help="Dynamic thresholding: the share of latents that are not cut, such as 0.995.")
]
ThresholdRange = Annotated[
    float | None, typer.Option(help="What --threshold brings latents within.  [default: 3, their usual range]")
]
Classifier = Annotated[
    str | None, typer.Option(metavar="RUN", help="Guide to --class by a classifier of `ldm train-classifier`.")
]
ClassifierScale = Annotated[float | None, typer.Option(help="How much the classifier counts.  [default: 1]")]
Clip = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Guide by a CLIP: a folder, a Hub id or open_clip:ARCHITECTURE:WEIGHTS."),
]
ClipScale = Annotated[float | None, typer.Option(help="How much CLIP counts.  [default: 100]")]
ClipCrops = Annotated[int | None, typer.Option(help="Parts of the image that CLIP sees in a step.  [default: 8]")]
ClipPrompt = Annotated[str | None, typer.Option(help="What CLIP reads.  [default: the prompt]")]


def parse_interval(text: str | None) -> tuple[float, float] | None:
    """Two numbers out of "LOW:HIGH", of which a missing one is no bound."""
    if text is None:
        return None
    low, colon, high = text.partition(":")
    try:
        if colon:
            return float(low or 0), float(high or "inf")
    except ValueError:
        pass
    raise UserError(f"--cfg-interval {text}: give two values of sigma / alpha such as 0.3:5")


def load_classifier(run: str | None, scale: float | None) -> ClassifierGuidance | None:
    """The classifier of a run; UserError for a scale without one."""
    if run is None:
        if scale is not None:
            raise UserError("--classifier-scale says how much a classifier counts: give --classifier")
        return None
    from ldm.generation import ClassifierGuidance

    return ClassifierGuidance.from_pretrained(run, **_given(scale=scale))


def load_clip(model: str | None, scale: float | None, crops: int | None, prompt: str | None) -> ClipGuidance | None:
    """The CLIP of a name; UserError for options of CLIP without one."""
    options = _given(scale=scale, crops=crops, prompt=prompt)
    if model is None:
        if options:
            raise UserError(f"--clip-{next(iter(options))} is an option of CLIP guidance: give --clip")
        return None
    from ldm.generation import ClipGuidance

    return ClipGuidance.from_pretrained(model, **options)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def guidance_facts(request: Request, classifier: str | None, clip: str | None) -> dict[str, object]:
    """What leads the images of a request, for their files to tell; nothing of what is off."""
    facts = _given(
        guidance_rescale=request.guidance_rescale or None,
        guidance_interval=request.guidance_interval,
        threshold=request.threshold,
        threshold_range=request.threshold_range,
    )
    if request.classifier is not None:
        facts |= {"classifier": classifier, "classifier_scale": request.classifier.scale}
        facts |= {"class": request.classes[0]} if request.prompts else {}
    if request.clip is not None:
        facts |= {"clip": clip, "clip_scale": request.clip.scale, "clip_crops": request.clip.crops}
        facts |= _given(clip_prompt=request.clip.prompt)
    return facts
