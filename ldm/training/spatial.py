"""Images that join the U-Net's input: maps of classes, what is left of images to be filled, small images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from ldm.checkpoint.diffusers.pipeline import Parts
from ldm.conditioning.spatial import SpatialConfig, hidden, inpainting_channels, make_spatial, one_hot
from ldm.config.root import Config
from ldm.data.cached import CachedData
from ldm.data.degrading import small_images
from ldm.data.images import paint, to_bytes
from ldm.data.loader import Batch, BatchShare, TrainingData
from ldm.data.masks import free_form_masks
from ldm.data.sources import Source
from ldm.errors import UserError
from ldm.training.compatibility import check_same
from ldm.training.conditions import Condition, Draw, Fields, Teller
from ldm.training.transfer import moved


class SpatialCondition(Condition):
    """An image beside the latents; it is told always, where other conditions are dropped too."""

    options = ("sample_images",)

    def __init__(self, parts: Parts, config: Config, accelerator: Accelerator, cache: CachedData | None) -> None:
        super().__init__(parts, config, accelerator, cache)
        assert parts.spatial is not None  # `given_parts` or `new_parts` made it
        self.spatial = parts.spatial
        self._examples: Batch | None = None

    @classmethod
    def check(cls, config: Config, new: bool) -> None:
        """Refuse prompts and classes to show how far training has come: each would need an image that fits it."""
        for name in ("sample_prompts", "sample_classes"):
            if getattr(config.training.unet, name):
                raise UserError(
                    f"training.unet.{name}: a U-Net that is told images draws training.unet.sample_images of "
                    "the data, with their captions or classes"
                )

    @classmethod
    def new_parts(cls, config: Config, source: Source, accelerator: Accelerator) -> Fields:
        """What brings the image beside the latents."""
        return {"spatial": make_spatial(_section(config))}

    @classmethod
    def given_parts(cls, config: Config, source: Source, given: Parts, where: str) -> Fields | None:
        """That of a model of the same kind."""
        if given.spatial is None:
            return None
        check_same(given.spatial.config, _section(config), "spatial", where)
        return {"spatial": given.spatial}

    @property
    def teller(self) -> Teller:
        """Hands on what `inputs` made."""
        return tell_joined

    def show(self, draw: Draw) -> list[Image.Image] | None:
        """The condition, what is drawn of it and the image itself, for each of `sample_images` in turn."""
        if not self.settings.sample_images:
            return []
        batch, shown = self._example_batch(), []
        assert batch.images is not None
        for row, (caption, image) in enumerate(zip(batch.captions, to_bytes(batch.images), strict=True)):
            told, fields = self.example(batch, row)
            subject: Fields = {} if self.config.text is None else {"prompt": caption}
            subject |= {"classes": batch.labels[row]} if self.config.tells_classes else {}
            away = self.config.text is not None or self.parts.empty_class is not None  # something to guide away from
            guided = {"guidance_scale": self.settings.sample_guidance_scale} if away else {}
            shown += [told.convert("RGB"), *draw(**subject, **guided, **fields), Image.fromarray(image)]
        return shown

    @abstractmethod
    def example(self, batch: Batch, row: int) -> tuple[Image.Image, Fields]:
        """What one sample of a batch is told, as a picture of its size, and as arguments of `TextToImage`."""

    def _example_batch(self) -> Batch:
        """Those of the draw of step 0, which is not trained on."""
        if self._examples is None:
            assert self.data is not None  # whoever made the condition set it
            count = self.settings.sample_images
            held = self.data.preview(count)
            data, seed, classes = self.config.data, self.config.training.seed, self.config.tells_classes
            self._examples = TrainingData(held, data, BatchShare(count), seed, classes=classes)[0, 0]
        return self._examples


class MapCondition(SpatialCondition):
    """A map of classes, through a segmentation_map that is trained together with the U-Net."""

    @classmethod
    def check(cls, config: Config, new: bool) -> None:
        """Refuse data without maps."""
        super().check(config, new)
        if config.data.map_classes is None:
            classes = _section(config).in_channels
            raise UserError(
                f"spatial.kind segmentation_map needs maps with the images: set data.map_classes to {classes}"
            )

    @property
    def trained(self) -> Mapping[str, nn.Module]:
        """The segmentation_map."""
        return {"spatial": self.spatial}

    @property
    def teller(self) -> Teller:
        """Rescales within the forward pass."""
        return rescale_and_tell

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Classes of the pixels (B, H, W)."""
        assert batch.maps is not None  # `check` saw to it
        return (moved(batch.maps, self.accelerator.device),)

    def example(self, batch: Batch, row: int) -> tuple[Image.Image, Fields]:
        """The map."""
        assert batch.maps is not None
        classes = batch.maps[row].numpy()
        return paint(classes), {"layout": Image.fromarray(classes)}


class InpaintingCondition(SpatialCondition):
    """A free-form mask, and the latents of the image without what the mask hides."""

    needs_images = True

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Mask and latents (B, 1 + C, h, w)."""
        assert batch.images is not None
        device = self.accelerator.device
        images, masks = moved(batch.images, device), moved(self._masks(batch), device)
        with torch.no_grad():
            latents = self.parts.autoencoder.encode(hidden(images, masks)).mode()
        return (inpainting_channels(masks, latents),)

    def example(self, batch: Batch, row: int) -> tuple[Image.Image, Fields]:
        """The image with grey where it is hidden."""
        assert batch.images is not None
        masks = self._masks(batch)
        told, whole = (Image.fromarray(to_bytes(each)[row]) for each in (hidden(batch.images, masks), batch.images))
        return told, {"image": whole, "mask": Image.fromarray((255 * masks[row, 0]).byte().numpy())}

    def _masks(self, batch: Batch) -> Tensor:
        assert batch.images is not None
        height, width = batch.images.shape[-2:]
        return free_form_masks(self.random, batch.step, batch.slots, (height, width))


class LowResolutionCondition(SpatialCondition):
    """An image made so small that it has as many pixels as there are latents, with a little noise if asked."""

    needs_images = True

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """The small images (B, 3, h, w)."""
        return (self._small(batch, self.accelerator.device),)

    def example(self, batch: Batch, row: int) -> tuple[Image.Image, Fields]:
        """The small image, enlarged without smoothing."""
        small = Image.fromarray(to_bytes(self._small(batch, torch.device("cpu")))[row])
        factor = self.parts.autoencoder.config.downsampling_factor
        large = small.resize((factor * small.width, factor * small.height), Image.Resampling.NEAREST)
        return large, {"image": small}

    def _small(self, batch: Batch, device: torch.device) -> Tensor:
        assert batch.images is not None
        images, factor = moved(batch.images, device), self.parts.autoencoder.config.downsampling_factor
        return small_images(images, factor, self.random, batch.step, batch.slots, self.config.data.low_res_noise_std)


def rescale_and_tell(network: Any, maps: Tensor) -> dict[str, Tensor]:
    """A `Teller` of maps of classes (B, H, W)."""
    return {"joined": network.spatial(one_hot(maps, network.spatial.config.in_channels))}


def tell_joined(network: nn.Module, joined: Tensor) -> dict[str, Tensor]:
    """A `Teller` of channels (B, C', h, w) that were made before."""
    return {"joined": joined}


def _section(config: Config) -> SpatialConfig:
    assert config.spatial is not None  # else there is no SpatialCondition
    return config.spatial
