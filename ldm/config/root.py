"""The whole of a configuration: fixed sections, and those that registered components contribute."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from ldm.conditioning.base import Conditioning
from ldm.conditioning.fit import all_conditionings, check_fit, used_conditionings
from ldm.config.classifier import ClassifierConfig
from ldm.config.data import DataConfig, Size
from ldm.config.diffusion import DiffusionConfig
from ldm.config.losses import LossConfig, check_losses, latent_multiples
from ldm.config.section import Section, extended
from ldm.config.training import TrainingConfig
from ldm.errors import UserError
from ldm.models.autoencoder.config import AnyAutoencoderConfig, AutoencoderConfig
from ldm.models.unet.config import UNetConfig


class ConfigBase(Section):
    """One file: everything that the training of each stage needs."""

    autoencoder: AnyAutoencoderConfig = AutoencoderConfig()
    unet: UNetConfig | None = UNetConfig()  # null: the file describes an autoencoder alone, or a classifier
    classifier: ClassifierConfig | None = None  # of noisy latents, for classifier guidance; in a file without a U-Net
    diffusion: DiffusionConfig = DiffusionConfig()
    loss: LossConfig = LossConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()

    if TYPE_CHECKING:  # sections of conditionings

        def __getattr__(self, name: str) -> Any: ...

    def need_unet(self) -> UNetConfig:
        """Return the denoiser's section; UserError if the file describes an autoencoder alone."""
        if self.unet is None:
            raise UserError("this configuration describes an autoencoder alone (unet: null): add the section unet")
        return self.unet

    def need_classifier(self) -> ClassifierConfig:
        """Return the classifier's section; UserError if there is none."""
        if self.classifier is None:
            raise UserError("this configuration has no classifier: add the section classifier")
        return self.classifier

    @property
    def conditionings(self) -> list[type[Conditioning]]:
        """The conditionings of the denoiser."""
        return used_conditionings(dict(self))

    @property
    def uses_labels(self) -> bool:
        """Whether training needs the class of each image."""
        return self.classifier is not None or any(each.uses_labels for each in self.conditionings)

    @property
    def image_sizes(self) -> tuple[Size, ...]:
        """Heights and widths of images in training: the square, and the buckets that both networks can take."""
        halvings = 1 if self.unet is None else self.unet.multiple
        return self.data.sizes(self.autoencoder.downsampling_factor * math.lcm(halvings, *latent_multiples(self)))

    @model_validator(mode="after")
    def _components_fit(self) -> ConfigBase:
        if self.unet is None:
            self._check_nothing_is_conditioned()
        else:
            check_fit(dict(self), "unet")
        if self.classifier is not None:
            self._check_classifier(self.classifier)
        self._check_data()
        check_losses(self)
        return self

    def _check_nothing_is_conditioned(self) -> None:
        for name in (name for each in all_conditionings() for name in each.sections):
            if getattr(self, name) is not None:
                raise ValueError(f"unet is null, but {name} is set: set {name} to null as well")

    def _check_classifier(self, classifier: ClassifierConfig) -> None:
        if self.unet is not None:
            raise ValueError("unet and classifier are both set: set one of them to null")
        if classifier.in_channels != self.autoencoder.latent_channels:
            raise ValueError(
                f"classifier.in_channels is {classifier.in_channels}, but autoencoder.latent_channels is "
                f"{self.autoencoder.latent_channels}: they must be equal"
            )

    def _check_data(self) -> None:
        factor = self.autoencoder.downsampling_factor
        if self.data.size % factor:
            raise ValueError(
                f"data.size is {self.data.size}, which the autoencoder's downsampling factor {factor} does not divide"
            )
        used = {option for each in self.conditionings for option in each.data_options}
        for each in all_conditionings():
            for option in each.data_options - used:
                if getattr(self.data, option) != DataConfig.model_fields[option].default:
                    raise ValueError(f"data.{option} is set, but only the conditioning {each.name} uses it")


_fields = {name: field for each in all_conditionings() for name, field in each.sections.items()}
if TYPE_CHECKING:
    Config = ConfigBase
else:
    Config = extended(ConfigBase, _fields)
    Config.__name__ = Config.__qualname__ = "Config"
