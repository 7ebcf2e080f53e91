"""Options of `ldm generate` for guidance by a classifier and by CLIP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ldm.errors import UserError
from ldm.generation.option import GUIDANCE

if TYPE_CHECKING:
    from ldm.generation import ClassifierGuidance, ClipGuidance, Request


def _option(text: str, metavar: str | None = None, minimum: int | None = None) -> Any:
    return typer.Option(help=text, metavar=metavar, min=minimum, rich_help_panel=GUIDANCE)


Classifier = Annotated[str | None, _option("Guide to --class by a run of `ldm train-classifier`.", "RUN")]
ClassifierScale = Annotated[float | None, _option("Scale of classifier guidance.  [default: 1]", minimum=0)]
Clip = Annotated[str | None, _option("Guide by a CLIP: a folder, a Hub id or open_clip:ARCH:WEIGHTS.", "MODEL")]
ClipScale = Annotated[float | None, _option("Scale of CLIP guidance.  [default: 100]", minimum=0)]
ClipCrops = Annotated[int | None, _option("Crops of the image for CLIP in each step.  [default: 8]", minimum=1)]
ClipPrompt = Annotated[str | None, _option("Text for CLIP.  [default: the prompt]")]


def load_classifier(run: str | None, scale: float | None) -> ClassifierGuidance | None:
    """Load the classifier of a run.

    Raises:
        UserError: for a scale without one.
    """
    if run is None:
        if scale is not None:
            raise UserError(f"--classifier-scale {scale:g} needs a classifier: give --classifier")
        return None
    from ldm.generation import ClassifierGuidance

    return ClassifierGuidance.from_pretrained(run, **_given(scale=scale))


def load_clip(model: str | None, scale: float | None, crops: int | None, prompt: str | None) -> ClipGuidance | None:
    """Load a CLIP.

    Raises:
        UserError: for options of CLIP guidance without one.
    """
    options = _given(scale=scale, crops=crops, prompt=prompt)
    if model is None:
        if options:
            raise UserError(f"--clip-{next(iter(options))} needs a CLIP: give --clip")
        return None
    from ldm.generation import ClipGuidance

    return ClipGuidance.from_pretrained(model, **options)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def guidance_facts(request: Request, classifier: str | None, clip: str | None) -> dict[str, object]:
    """Return the PNG parameters of guidance by a classifier and by CLIP."""
    facts: dict[str, object] = {}
    if request.classifier is not None:
        facts |= {"classifier": classifier, "classifier_scale": request.classifier.scale}
        facts |= {"class": request.classes[0]} if request.prompts else {}
    if request.clip is not None:
        facts |= {"clip": clip, "clip_scale": request.clip.scale, "clip_crops": request.clip.crops}
        facts |= _given(clip_prompt=request.clip.prompt)
    return facts
