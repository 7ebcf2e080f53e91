"""The picture itself, through an encoder that keeps what it shows: a model trained so draws variations of a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm.checkpoint.diffusers import Parts
from ldm.checkpoint.picture_encoders import load_source
from ldm.config import CLIPPictureConfig, Config, PictureSection
from ldm.data.cached import CachedData
from ldm.data.loader import Batch
from ldm.data.pictures import read_picture
from ldm.data.shards import Shards
from ldm.data.sources import Source
from ldm.errors import UserError
from ldm.models.pictures import make_picture_encoder
from ldm.training.conditions import Condition, Fields, Teller
from ldm.training.same import check_same
from ldm.training.transfer import moved


class PictureCondition(Condition):
    """The context of the picture that is drawn; a share of the contexts is zeros, which guidance leads away from."""

    options = ("condition_dropout", "sample_pictures", "sample_image", "sample_guidance_scale")

    def __init__(self, parts: Parts, config: Config, accelerator: Accelerator, cache: CachedData | None) -> None:
        super().__init__(parts, config, accelerator, cache)
        assert parts.picture_encoder is not None  # `new_parts` or a model gave it
        self.encoder, self.frozen = parts.picture_encoder, _section(config).frozen
        self.needs_pictures = not self.encoder.takes_latents
        if self.frozen:
            self.encoder.to(accelerator.device).eval().requires_grad_(False)

    @classmethod
    def check(cls, config: Config, new: bool) -> None:
        """Refuse an encoder that would keep random weights, and one of pixels where there are latents alone."""
        picture, settings = _section(config), config.training.unet
        if isinstance(picture, CLIPPictureConfig) and settings.cache_latents:
            raise UserError("picture.kind clip looks at pixels: set training.unet.cache_latents to false")
        if new and picture.frozen and not (isinstance(picture, CLIPPictureConfig) and picture.source):
            raise UserError("picture.frozen without picture.source would keep random weights: set one of the two")
        if (settings.sample_image is None) != (settings.sample_pictures == 0):
            raise UserError("training.unet.sample_image and sample_pictures go together: set both or none")
        if settings.sample_image is not None:
            read_picture(Path(settings.sample_image))

    @classmethod
    def new_parts(cls, config: Config, source: Source | Shards, accelerator: Accelerator) -> Fields:
        """The encoder of `picture.source`, or a new one."""
        picture = _section(config)
        if isinstance(picture, CLIPPictureConfig) and picture.source is not None:
            return {"picture_encoder": load_source(picture)}
        return {"picture_encoder": make_picture_encoder(picture)}

    @classmethod
    def given_parts(cls, config: Config, source: Source | Shards, given: Parts, where: str) -> Fields | None:
        """The encoder of a model that varies pictures, if it is like that of the configuration."""
        if given.picture_encoder is None:
            return None
        picture, own = _section(config), given.picture_encoder.config
        if own.kind != picture.kind:
            raise UserError(
                f"the model {where} has a picture encoder of kind {own.kind}, picture.kind is {picture.kind}"
            )
        if not (isinstance(picture, CLIPPictureConfig) and picture.source):
            check_same(own, picture, "picture", where)
        return {"picture_encoder": given.picture_encoder}

    @property
    def trained(self) -> Mapping[str, nn.Module]:
        """The encoder, if it is not frozen."""
        return {} if self.frozen else {"picture_encoder": self.encoder}

    @property
    def teller(self) -> Teller:
        """Encodes in the forward pass, or hands on what a frozen encoder made."""
        return tell_what_is_kept if self.frozen else encode_and_tell

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Latents or pictures, or a frozen encoder's context (B, L, D); and where they are kept, (B, 1, 1)."""
        device = self.accelerator.device
        kept = moved(torch.tensor([not dropped for dropped in self.dropped(batch)]), device)[:, None, None]
        with torch.no_grad(), self.accelerator.autocast():
            given = self._latents(batch) if self.encoder.takes_latents else self._pictures(batch)
            return (self.encoder(given) if self.frozen else given), kept

    def _pictures(self, batch: Batch) -> Tensor:
        assert batch.pictures is not None  # `needs_pictures` saw to it
        return moved(batch.pictures, self.accelerator.device)

    def _latents(self, batch: Batch) -> Tensor:
        """The mode of each picture's posterior, as in drawing."""
        if self.cache is None:
            return self.parts.autoencoder.encode(self._pictures(batch)).mode()
        moments = moved(self.cache.moments(batch.indices), self.accelerator.device)
        return self.parts.autoencoder.posterior(moments).mode()

    def examples(self) -> Fields | None:
        """`sample_pictures` variations of `sample_image`."""
        if self.settings.sample_image is None:
            return None
        image, scale = read_picture(Path(self.settings.sample_image)), self.settings.sample_guidance_scale
        return {"image": image, "num_images": self.settings.sample_pictures, "guidance_scale": scale}


def encode_and_tell(network: Any, given: Tensor, kept: Tensor) -> dict[str, Tensor]:
    """A `Teller` of what the encoder takes, with zeros for what is not kept."""
    return tell_what_is_kept(network, network.picture_encoder(given), kept)


def tell_what_is_kept(network: nn.Module, context: Tensor, kept: Tensor) -> dict[str, Tensor]:
    """A `Teller` of a context (B, L, D) that was made before."""
    return {"context": context * kept}


def _section(config: Config) -> PictureSection:
    assert config.picture is not None  # else there is no PictureCondition
    return config.picture
