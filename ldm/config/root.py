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
from ldm.models.denoiser import DenoiserNetwork
from ldm.registry import DENOISERS


class ConfigBase(Section):
    """One file: everything that the training of each stage needs."""

    autoencoder: AnyAutoencoderConfig = AutoencoderConfig()
    classifier: ClassifierConfig | None = None  # of noisy latents, for classifier guidance; in a file without a U-Net
    diffusion: DiffusionConfig = DiffusionConfig()
    loss: LossConfig = LossConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()

    if TYPE_CHECKING:  # sections of denoisers and conditionings

        def __getattr__(self, name: str) -> Any: ...

    @property
    def denoiser_name(self) -> str | None:
        """Name of the denoiser's section; None: the file describes an autoencoder alone, or a classifier."""
        return next((name for name in DENOISERS if getattr(self, name) is not None), None)

    @property
    def denoiser(self) -> Any:
        """Section of the denoiser.

        Raises:
            UserError: if there is none.
        """
        return getattr(self, self._needed_denoiser())

    @property
    def denoiser_class(self) -> type[DenoiserNetwork]:
        """Network of the denoiser's section.

        Raises:
            UserError: if there is none.
        """
        return DENOISERS[self._needed_denoiser()]

    def _needed_denoiser(self) -> str:
        if self.denoiser_name is None:
            raise UserError(f"this configuration has no denoiser: add a section {' or '.join(DENOISERS)}")
        return self.denoiser_name

    @property
    def sections(self) -> dict[str, Any]:
        """Sections by name; the denoiser's section is also available as `denoiser`."""
        name = self.denoiser_name
        return dict(self) | {"denoiser": None if name is None else getattr(self, name)}

    def need_classifier(self) -> ClassifierConfig:
        """Return the classifier's section.

        Raises:
            UserError: if there is none.
        """
        if self.classifier is None:
            raise UserError("this configuration has no classifier: add the section classifier")
        return self.classifier

    @property
    def conditionings(self) -> list[type[Conditioning]]:
        """The conditionings of the denoiser."""
        return used_conditionings(self.sections)

    @property
    def uses_labels(self) -> bool:
        """Whether training needs the class of each image."""
        return self.classifier is not None or any(each.uses_labels for each in self.conditionings)

    @property
    def image_sizes(self) -> tuple[Size, ...]:
        """Heights and widths of images in training: the square, and the buckets that both networks can take."""
        halvings = 1 if self.denoiser_name is None else self.denoiser.multiple
        return self.data.sizes(self.autoencoder.downsampling_factor * math.lcm(halvings, *latent_multiples(self)))

    @model_validator(mode="before")
    @classmethod
    def _choose_denoiser(cls, tree: Any) -> Any:
        """Replace the default denoiser by one of another kind."""
        default, *others = DENOISERS
        given = [name for name in others if isinstance(tree, dict) and tree.get(name) is not None]
        return {default: None} | tree if given else tree

    @model_validator(mode="after")
    def _components_fit(self) -> ConfigBase:
        if self.denoiser_name is None:
            self._check_nothing_is_conditioned()
        else:
            check_fit(self.sections, self.denoiser_name)
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
        if self.denoiser_name is not None:
            raise ValueError(f"{self.denoiser_name} and classifier are both set: set one of them to null")
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


_fields: dict[str, tuple[Any, Any]] = {
    name: field for each in all_conditionings() for name, field in each.sections.items()
}
_fields |= {name: (each.section | None, None) for name, each in DENOISERS.items()}
_fields["unet"] = (DENOISERS["unet"].section | None, DENOISERS["unet"].section())
if TYPE_CHECKING:
    Config = ConfigBase
else:
    Config = extended(ConfigBase, _fields)
    Config.__name__ = Config.__qualname__ = "Config"
