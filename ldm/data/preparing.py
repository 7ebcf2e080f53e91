"""Prepare samples: choose a caption, crop and flip the image, as seed, step and slot determine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import index as index_of
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.data.broken import Broken, UnreadableError
from ldm.data.images import CroppedImage, resize_and_crop, to_tensor
from ldm.data.random import StepRandom
from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.config.data import DataConfig, Size
    from ldm.data.sources import Source

TRIES = 100  # samples tried for one slot of a batch before an error says that the data as a whole is unusable


@dataclass(frozen=True)
class PreparedSample:
    """The sample in one slot of a batch, and the unreadable ones that it replaces."""

    index: int
    caption: str
    crop: CroppedImage | None  # None where images are not needed
    label: int | None = None  # class; None where classes are not needed
    map: np.ndarray | None = None  # uint8 (H, W), classes of the pixels of the crop; None where there are no maps
    broken: tuple[Broken, ...] = ()


@dataclass(frozen=True)
class Batch:
    """One micro-batch: its samples, and the slots that determine their random numbers."""

    step: int
    slots: Sequence[int]
    indices: Sequence[int]
    images: Tensor | None  # (B, 3, H, W) in [-1, 1]; None where latents are cached
    captions: Sequence[str]
    original_sizes: Tensor | None = None  # (B, 2), height and width before the resize
    crops: Tensor | None = None  # (B, 2), top and left of the crop in the resized image
    labels: Sequence[int] = ()  # class of each sample; () where classes are not needed
    maps: Tensor | None = None  # (B, H, W), uint8, classes of the pixels
    broken: Sequence[Broken] = ()  # unreadable samples that others replace


class Preparation:
    """Prepares samples of a source, alike for any number of processes."""

    def __init__(
        self,
        source: Source,
        config: DataConfig,
        seed: int,
        images: bool = True,
        classes: bool = False,
        unreadable: Mapping[int, Broken] | None = None,
    ) -> None:
        self.source, self.config, self.random = source, config, StepRandom(seed)
        self.images, self.classes, self.unreadable = images, classes, unreadable or {}
        if config.map_classes is not None and not source.has_maps:
            raise source.no_maps()

    def fill(
        self, item: Any, count: int, replacement: Callable[[int], Any], size: Size, step: int, slot: int
    ) -> PreparedSample:
        """Prepare `item` for a slot, or while it is unreadable a random one of `count` replacements.

        Raises:
            UserError: after 100 unreadable samples in a row.
        """
        broken: list[Broken] = []
        while True:
            try:
                return replace(self.sample(item, size, step, slot), broken=tuple(broken))
            except UnreadableError as error:
                broken.append(error.broken)
                if len(broken) == TRIES:
                    raise UserError(
                        f"{TRIES} samples in a row cannot be used: check the data. The last one: {error}"
                    ) from error
                item = replacement(self.random.choice(f"fill/{len(broken)}", step, slot, count))

    def sample(self, item: Any, size: Size, step: int, slot: int) -> PreparedSample:
        """Read and prepare one sample."""
        source, index, crop, classes = self.source, index_of(item), None, None
        if index in self.unreadable:
            raise UnreadableError(self.unreadable[index].name, self.unreadable[index].reason)
        captions = source.captions(item)
        caption = captions[self.random.choice("caption", step, slot, len(captions))]
        if self.images:
            crop = self._crop(source.image(item), size, step, slot)
        if self.config.map_classes is not None:
            classes = self._map(item, crop, size, step, slot)
        return PreparedSample(index, caption, crop, source.label(item) if self.classes else None, classes)

    def _crop(self, image: Image.Image | np.ndarray, size: Size, step: int, slot: int) -> CroppedImage:
        at, zoom, flip = self._augmentation(step, slot)
        if isinstance(image, np.ndarray) and image.shape[:2] == size and zoom == 1:
            crop = CroppedImage(image, size, size, (0, 0))
        else:
            crop = resize_and_crop(_pillow(image), size, at, zoom)
        return crop.flipped() if flip else crop

    def _map(self, item: Any, like: CroppedImage | None, size: Size, step: int, slot: int) -> np.ndarray:
        """Crop a map of classes (H, W) as its image was cropped."""
        image, name, count = _pillow(self.source.map(item)), self.source.name_of(item), self.config.map_classes or 0
        if like is not None and like.original != (image.height, image.width):
            height, width = like.original
            raise UnreadableError(name, f"its map is {image.width}x{image.height}, the image {width}x{height}")
        at, zoom, flip = self._augmentation(step, slot)
        crop = resize_and_crop(image, size, at, zoom, Image.Resampling.NEAREST)
        pixels = crop.flipped().pixels if flip else crop.pixels
        if (highest := int(pixels.max())) >= count:
            raise UnreadableError(name, f"its map has class {highest}; data.map_classes is {count}: 0 to {count - 1}")
        return pixels

    def _augmentation(self, step: int, slot: int) -> tuple[tuple[float, float], float, bool]:
        """Place of the crop as (across, down), enlargement before it, and whether to flip."""
        at, zoom = (0.5, 0.5), 1.0
        if self.config.random_crop:
            across, down = torch.rand(2, generator=self.random.generator("crop", step, slot)).tolist()
            at = (across, down)
        if self.config.random_zoom > 1:
            zoom = self.config.random_zoom ** self.random.uniform("zoom", step, [slot]).item()
        return at, zoom, bool(self.config.random_flip and self.random.choice("flip", step, slot, 2))


def _pillow(image: Image.Image | np.ndarray) -> Image.Image:
    return Image.fromarray(image) if isinstance(image, np.ndarray) else image


def make_batch(step: int, slots: Sequence[int], samples: Sequence[PreparedSample]) -> Batch:
    """Stack samples; their crops have one size."""
    crops = [sample.crop for sample in samples if sample.crop is not None]
    maps = [sample.map for sample in samples if sample.map is not None]
    return Batch(
        step=step,
        slots=slots,
        indices=[sample.index for sample in samples],
        images=to_tensor(np.stack([crop.pixels for crop in crops])) if crops else None,
        captions=[sample.caption for sample in samples],
        original_sizes=torch.tensor([crop.original for crop in crops]) if crops else None,
        crops=torch.tensor([crop.crop for crop in crops]) if crops else None,
        labels=[sample.label for sample in samples if sample.label is not None],
        maps=torch.from_numpy(np.stack(maps)) if maps else None,
        broken=[broken for sample in samples for broken in sample.broken],
    )


def join(parts: Sequence[Batch]) -> Batch:
    """Merge batches of one step that hold different slots, in the order of the slots."""
    full = [part for part in parts if len(part.slots)]
    slots = [slot for part in full for slot in part.slots]
    order = sorted(range(len(slots)), key=slots.__getitem__)

    def rows(name: str) -> list[Any]:
        values = [value for part in full for value in getattr(part, name)]
        return [values[row] for row in order] if values else []

    def tensor(name: str) -> Tensor | None:
        found = [getattr(part, name) for part in full]
        return None if found[0] is None else torch.cat(found)[order]

    lists: dict[str, Any] = {name: rows(name) for name in ("slots", "indices", "captions", "labels")}
    tensors: dict[str, Any] = {name: tensor(name) for name in ("images", "original_sizes", "crops", "maps")}
    return Batch(parts[0].step, **lists, **tensors, broken=[broken for part in parts for broken in part.broken])
