"""One sample made ready: which caption, which part of the image, flipped or not, as seed, step and slot say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.config.data import DataConfig, Size
from ldm.data.broken import Broken, UnreadableError
from ldm.data.images import Cut, cut_out, to_tensor
from ldm.data.random import StepRandom


@dataclass(frozen=True)
class Sample:
    """What stands in one slot."""

    index: int
    caption: str
    cut: Cut | None  # None where images are not needed
    label: int | None = None  # its class; None where classes are not needed
    map: np.ndarray | None = None  # uint8 (H, W), of the pixels of the cut; None where there are no maps


@dataclass(frozen=True)
class Batch:
    """One micro-batch: what the samples are, and the slots from which their random numbers follow."""

    step: int
    slots: Sequence[int]
    indices: Sequence[int]
    images: Tensor | None  # (B, 3, H, W) in [-1, 1]; None where latents are cached
    captions: Sequence[str]
    original_sizes: Tensor | None = None  # (B, 2), height and width before the resize
    crops: Tensor | None = None  # (B, 2), top and left of the cut in the resized image, as the network sees it
    labels: Sequence[int] = ()  # class of each sample; () where nobody asks for them
    maps: Tensor | None = None  # (B, H, W), uint8, classes of the pixels
    broken: Sequence[Broken] = ()  # samples that could not be read, in whose places others stand


class Preparation:
    """Makes samples ready; one process and many make the same of them."""

    def __init__(self, config: DataConfig, seed: int) -> None:
        self.config, self.random = config, StepRandom(seed)

    def caption(self, captions: Sequence[str], step: int, slot: int) -> str:
        """One of an image's captions."""
        return captions[self.random.choice("caption", step, slot, len(captions))]

    def image(self, image: Image.Image | np.ndarray, size: Size, step: int, slot: int) -> Cut:
        """The image cut to `size`, with the configured chance."""
        at, zoom, flip = self._placing(step, slot)
        if isinstance(image, np.ndarray) and image.shape[:2] == size and zoom == 1:
            cut = Cut(image, size, size, (0, 0))
        else:
            loaded = Image.fromarray(image) if isinstance(image, np.ndarray) else image
            cut = cut_out(loaded, size, at, zoom)
        return cut.flipped() if flip else cut

    def map(
        self, drawn: Image.Image | np.ndarray, like: Cut | None, size: Size, step: int, slot: int, name: str
    ) -> np.ndarray:
        """The map (H, W) of classes cut to `size` as its image is, which became `like` if it was read.

        UnreadableError, with the sample's name, where it does not fit the image or has classes of other numbers.
        """
        loaded = Image.fromarray(drawn) if isinstance(drawn, np.ndarray) else drawn
        if like is not None and like.original != (loaded.height, loaded.width):
            height, width = like.original
            raise UnreadableError(name, f"its map is {loaded.width}x{loaded.height}, the image {width}x{height}")
        at, zoom, flip = self._placing(step, slot)
        cut = cut_out(loaded, size, at, zoom, Image.Resampling.NEAREST)
        pixels = cut.flipped().pixels if flip else cut.pixels
        known = self.config.map_classes or 0
        if (highest := int(pixels.max())) >= known:
            fault = f"its map has class {highest}; data.map_classes is {known}: 0 to {known - 1}"
            raise UnreadableError(name, fault)
        return pixels

    def _placing(self, step: int, slot: int) -> tuple[tuple[float, float], float, bool]:
        """Where an image is cut, how far it is enlarged before, and whether it is flipped."""
        at, zoom = (0.5, 0.5), 1.0
        if self.config.random_crop:
            across, down = torch.rand(2, generator=self.random.generator("crop", step, slot)).tolist()
            at = (across, down)
        if self.config.random_zoom > 1:
            zoom = self.config.random_zoom ** self.random.uniform("zoom", step, [slot]).item()
        return at, zoom, bool(self.config.random_flip and self.random.choice("flip", step, slot, 2))


def make_batch(step: int, slots: Sequence[int], samples: Sequence[Sample], broken: Sequence[Broken]) -> Batch:
    """Samples side by side; their images have one size."""
    indices, captions = [sample.index for sample in samples], [sample.caption for sample in samples]
    cuts = [sample.cut for sample in samples if sample.cut is not None]
    labels = [sample.label for sample in samples if sample.label is not None]
    drawn = [sample.map for sample in samples if sample.map is not None]
    maps = torch.from_numpy(np.stack(drawn)) if drawn else None
    if not cuts:
        return Batch(step, slots, indices, None, captions, labels=labels, maps=maps, broken=broken)
    images = to_tensor(np.stack([cut.pixels for cut in cuts]))
    originals, crops = (torch.tensor(pairs) for pairs in zip(*((cut.original, cut.crop) for cut in cuts), strict=True))
    return Batch(step, slots, indices, images, captions, originals, crops, labels, maps, broken)


def join(parts: Sequence[Batch]) -> Batch:
    """Batches of images of one step with different slots as one, in the order of the slots."""
    if len(parts) == 1:
        return parts[0]
    order = sorted((slot, part, place) for part, batch in enumerate(parts) for place, slot in enumerate(batch.slots))
    rows = [(parts[part], place) for _, part, place in order]

    def together(name: str) -> Tensor:
        return torch.stack([getattr(batch, name)[place] for batch, place in rows])

    return Batch(
        step=parts[0].step,
        slots=[slot for slot, _, _ in order],
        indices=[batch.indices[place] for batch, place in rows],
        images=together("images"),
        captions=[batch.captions[place] for batch, place in rows],
        original_sizes=together("original_sizes"),
        crops=together("crops"),
        labels=[batch.labels[place] for batch, place in rows] if parts[0].labels else (),
        maps=None if parts[0].maps is None else together("maps"),
        broken=[broken for batch in parts for broken in batch.broken],
    )
