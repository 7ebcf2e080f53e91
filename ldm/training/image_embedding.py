"""The image itself, through an encoder that keeps what it shows: a model trained so draws variations of an image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm.checkpoint.diffusers.pipeline import Parts
from ldm.conditioning.image.encoders import CLIPImageConfig, ImageSection, make_image_encoder
from ldm.conditioning.image.files import load_source
from ldm.config.root import Config
from ldm.data.cached import CachedData
from ldm.data.images import read_image
from ldm.data.loader import Batch
from ldm.data.sources import Source
from ldm.errors import UserError
from ldm.training.compatibility import check_same
from ldm.training.conditions import Condition, Fields, Teller
from ldm.training.transfer import moved


class ImageCondition(Condition):
    """The context of the image that is drawn; a share of the contexts is zeros, which guidance leads away from."""

    options = ("condition_dropout", "sample_images", "sample_image", "sample_guidance_scale")

    def __init__(self, parts: Parts, config: Config, accelerator: Accelerator, cache: CachedData | None) -> None:
        super().__init__(parts, config, accelerator, cache)
        assert parts.image_encoder is not None  # `new_parts` or a model gave it
        self.encoder, self.frozen = parts.image_encoder, _section(config).frozen
        self.needs_images = not self.encoder.takes_latents
        if self.frozen:
            self.encoder.to(accelerator.device).eval().requires_grad_(False)

    @classmethod
    def check(cls, config: Config, new: bool) -> None:
        """Refuse an encoder that would keep random weights, and one of pixels where there are latents alone."""
        image, settings = _section(config), config.training.unet
        if isinstance(image, CLIPImageConfig) and settings.cache_latents:
            raise UserError("image.kind clip looks at pixels: set training.unet.cache_latents to false")
        if new and image.frozen and not (isinstance(image, CLIPImageConfig) and image.source):
            raise UserError("image.frozen without image.source would keep random weights: set one of the two")
        if (settings.sample_image is None) != (settings.sample_images == 0):
            raise UserError("training.unet.sample_image and sample_images go together: set both or none")
        if settings.sample_image is not None:
            read_image(Path(settings.sample_image))

    @classmethod
    def new_parts(cls, config: Config, source: Source, accelerator: Accelerator) -> Fields:
        """The encoder of `image.source`, or a new one."""
        image = _section(config)
        if isinstance(image, CLIPImageConfig) and image.source is not None:
            return {"image_encoder": load_source(image)}
        return {"image_encoder": make_image_encoder(image)}

    @classmethod
    def given_parts(cls, config: Config, source: Source, given: Parts, where: str) -> Fields | None:
        """The encoder of a model that varies images, if it is like that of the configuration."""
        if given.image_encoder is None:
            return None
        image, own = _section(config), given.image_encoder.config
        if own.kind != image.kind:
            raise UserError(f"the model {where} has an image encoder of kind {own.kind}, image.kind is {image.kind}")
        if not (isinstance(image, CLIPImageConfig) and image.source):
            check_same(own, image, "image", where)
        return {"image_encoder": given.image_encoder}

    @property
    def trained(self) -> Mapping[str, nn.Module]:
        """The encoder, if it is not frozen."""
        return {} if self.frozen else {"image_encoder": self.encoder}

    @property
    def teller(self) -> Teller:
        """Encodes in the forward pass, or hands on what a frozen encoder made."""
        return tell_what_is_kept if self.frozen else encode_and_tell

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Latents or images, or a frozen encoder's context (B, L, D); and where they are kept, (B, 1, 1)."""
        device = self.accelerator.device
        kept = moved(torch.tensor([not dropped for dropped in self.dropped(batch)]), device)[:, None, None]
        with torch.no_grad(), self.accelerator.autocast():
            given = self._latents(batch) if self.encoder.takes_latents else self._images(batch)
            return (self.encoder(given) if self.frozen else given), kept

    def _images(self, batch: Batch) -> Tensor:
        assert batch.images is not None  # `needs_images` saw to it
        return moved(batch.images, self.accelerator.device)

    def _latents(self, batch: Batch) -> Tensor:
        """The mode of each image's posterior, as in drawing."""
        if self.cache is None:
            return self.parts.autoencoder.encode(self._images(batch)).mode()
        moments = moved(self.cache.moments(batch.indices), self.accelerator.device)
        return self.parts.autoencoder.posterior(moments).mode()

    def examples(self) -> Fields | None:
        """`sample_images` variations of `sample_image`."""
        if self.settings.sample_image is None:
            return None
        image, scale = read_image(Path(self.settings.sample_image)), self.settings.sample_guidance_scale
        return {"image": image, "num_images": self.settings.sample_images, "guidance_scale": scale}


def encode_and_tell(network: Any, given: Tensor, kept: Tensor) -> dict[str, Tensor]:
    """A `Teller` of what the encoder takes, with zeros for what is not kept."""
    return tell_what_is_kept(network, network.image_encoder(given), kept)


def tell_what_is_kept(network: nn.Module, context: Tensor, kept: Tensor) -> dict[str, Tensor]:
    """A `Teller` of a context (B, L, D) that was made before."""
    return {"context": context * kept}


def _section(config: Config) -> ImageSection:
    assert config.image is not None  # else there is no ImageCondition
    return config.image
