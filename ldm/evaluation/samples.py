"""Generate the images to measure, and score how well they match their captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import torch

from ldm.data.progress import track
from ldm.data.sources import Source
from ldm.errors import UserError
from ldm.evaluation.plan import Plan
from ldm.evaluation.reading import Collector, Reader, in_batches
from ldm.generation import Request, TextToImage
from ldm.processes import ProcessShare

CaptionScore = Callable[[np.ndarray, Sequence[str]], np.ndarray]  # bytes (n, H, W, 3), captions -> (n,)


def request_of(pipe: TextToImage, source: Source, plan: Plan) -> Request:
    """Return the request for an image per image of the data, with its first caption or its class."""
    request = replace(plan.sampling or Request(), batch_size=plan.batch_size)
    if "text" in pipe.pipeline.conditionings:
        captions = tuple(source.captions(number)[0] for number in range(plan.samples))
        request = replace(request, prompts=captions)
    elif any(each.uses_labels for each in pipe.pipeline.conditionings.values()):
        names = source.class_names if pipe.pipeline.class_names else ()
        labels = [source.label(number) for number in range(plan.samples)]
        request = replace(request, classes=tuple(names[label] if names else label for label in labels))
    else:
        request = replace(request, num_images=plan.samples)
    return pipe.resolve(request)


def generate_through(pipe: TextToImage, request: Request, readers: Sequence[Reader], share: ProcessShare) -> None:
    """Generate this process' share of a request's images, and pass them to the readers in batches."""
    numbers = list(share.of(len(request.images)))
    images: Iterator[np.ndarray] = map(np.asarray, pipe.generate(request, numbers=numbers))
    if share.is_first:
        images = iter(track(images, "generating images", len(numbers)))
    for batch in in_batches(images, request.batch_size or Plan.batch_size):
        for reader in readers:
            reader.see(batch)


def caption_scorer(score: CaptionScore, captions: Sequence[str]) -> Collector[float]:
    """Return a reader that scores each of this process' images against its caption."""
    waiting = iter(captions)
    return Collector(len(captions), lambda images: score(images, list(islice(waiting, len(images)))).tolist())


def clip_score(model: str, device: torch.device) -> CaptionScore:
    """Return the CLIP score: 100 times the cosine, at least 0 (Hessel et al. 2021 without their factor of 2.5)."""
    from transformers import AutoProcessor, CLIPModel

    try:
        network, processor = CLIPModel.from_pretrained(model).eval().to(device), AutoProcessor.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise UserError(f"no CLIP model {model!r}: {' '.join(str(error).split())}") from error

    @torch.inference_mode()
    def score(images: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        inputs = processor(text=list(captions), images=list(images), return_tensors="pt", padding=True, truncation=True)
        found = network(**inputs.to(device))
        return (100 * (found.image_embeds * found.text_embeds).sum(-1)).clamp(min=0).cpu().numpy()

    return score
