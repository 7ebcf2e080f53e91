"""Images that a model draws for being measured, and how well they fit their captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from ldm.data.progress import track
from ldm.data.sources import Source
from ldm.errors import UserError
from ldm.evaluation.plan import Plan, Sampling
from ldm.evaluation.reading import Reader, in_batches
from ldm.generation import Request, TextToImage
from ldm.processes import ProcessShare

Score = Callable[[np.ndarray, Sequence[str]], np.ndarray]  # bytes (n, H, W, 3), captions -> (n,)


def request_of(pipe: TextToImage, source: Source, plan: Plan) -> Request:
    """What is drawn: an image like each of the data's first ones, of its first caption or of its class."""
    sampling = plan.sampling or Sampling()
    request = Request(
        guidance_scale=sampling.guidance_scale,
        quality=sampling.quality,
        num_inference_steps=sampling.num_inference_steps,
        sampler=sampling.sampler,
        eta=sampling.eta,
        seed=sampling.seed,
        batch_size=plan.batch_size,
    )
    if pipe.parts.texts:
        captions = tuple(source.captions(number)[0] for number in range(plan.samples))
        request = replace(request, prompts=captions)
    elif pipe.parts.num_classes is not None:
        request = replace(request, classes=classes_of(pipe, source, plan.samples))
    else:
        request = replace(request, num_images=plan.samples)
    return pipe.resolve(request)


def classes_of(pipe: TextToImage, source: Source, count: int) -> tuple[int | str, ...]:
    """The classes of the data's first images, by their names where the model knows any."""
    names = source.class_names if pipe.parts.class_names else ()
    labels = [source.label(number) for number in range(count)]
    return tuple(names[label] if names else label for label in labels)


def draw_through(pipe: TextToImage, request: Request, readers: Sequence[Reader], share: ProcessShare) -> None:
    """Draw this process' share of a request's images and show them to the readers, batch by batch."""
    numbers = list(share.of(len(request.images)))
    drawn: Iterator[np.ndarray] = map(np.asarray, pipe.draw(request, numbers=numbers))
    if share.is_first:
        drawn = track(drawn, "drawing images", len(numbers))
    for images in in_batches(drawn, request.batch_size or Plan.batch_size):
        for reader in readers:
            reader.see(images)


class FirstSamples:
    """The first images, kept to be shown."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._kept: list[np.ndarray] = []

    def see(self, images: np.ndarray) -> None:
        """Bytes (n, H, W, 3)."""
        self._kept += list(images[: self.count - len(self._kept)])

    def gathered(self, share: ProcessShare) -> np.ndarray:
        """The first of all processes' images, bytes (count or fewer, H, W, 3)."""
        return np.stack(share.gather(self._kept)[: self.count])


class CaptionScores:
    """How well each of this process' images fits its caption."""

    def __init__(self, score: Score, captions: Sequence[str]) -> None:
        self.count, self.score, self.captions = len(captions), score, captions
        self._found: list[float] = []

    def see(self, images: np.ndarray) -> None:
        """Bytes (n, H, W, 3)."""
        at = len(self._found)
        self._found += self.score(images, self.captions[at : at + len(images)]).tolist()

    def mean(self, share: ProcessShare) -> float:
        """Over all processes' images."""
        return float(np.mean(share.gather(self._found)))


def clip_score(model: str, device: torch.device) -> Score:
    """100 times the cosine of image and caption under a CLIP, at least 0 (Hessel et al. 2021 without their 2.5)."""
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
