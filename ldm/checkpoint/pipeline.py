"""A pipeline: autoencoder, denoiser and conditionings that fit together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ldm.conditioning.base import Conditioning, Subject
from ldm.conditioning.conditions import Conditions
from ldm.conditioning.fit import all_conditionings, check_fit
from ldm.config.diffusion import DiffusionConfig
from ldm.config.section import Section
from ldm.errors import UserError
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.denoiser import DenoiserNetwork
from ldm.models.precision import require_finite
from ldm.registry import DENOISERS

if TYPE_CHECKING:
    from ldm.generation.request import Request


@dataclass(frozen=True)
class Pipeline:
    """All components of a model, by name."""

    autoencoder: Autoencoder
    denoiser: DenoiserNetwork
    diffusion: DiffusionConfig
    conditionings: Mapping[str, Conditioning]
    tile: int | None = None  # side in pixels of the tiles that pass through the autoencoder; see `ldm.models.tiling`

    @property
    def modules(self) -> dict[str, nn.Module]:
        """All networks with weights, by name."""
        found: dict[str, nn.Module] = {"autoencoder": self.autoencoder, self.denoiser_name: self.denoiser}
        return found | {name: module for each in self.conditionings.values() for name, module in each.modules.items()}

    @property
    def denoiser_name(self) -> str:
        """Name of the denoiser in the registry, in a configuration and among the modules."""
        return next(name for name, each in DENOISERS.items() if isinstance(self.denoiser, each))

    def with_modules(self, modules: Mapping[str, nn.Module]) -> Pipeline:
        """Replace networks by others of the same kinds, by name."""
        conditionings = {name: each.with_modules(modules) for name, each in self.conditionings.items()}
        kept: dict[str, Any] = {"autoencoder": self.autoencoder, "denoiser": self.denoiser}
        kept["denoiser"] = modules.get(self.denoiser_name, self.denoiser)
        return replace(self, **kept, conditionings=conditionings)

    @property
    def sections(self) -> dict[str, Section]:
        """Sections of a configuration that describe the components."""
        found: dict[str, Section] = {"autoencoder": self.autoencoder.config, "denoiser": self.denoiser.config}
        found |= {self.denoiser_name: self.denoiser.config, "diffusion": self.diffusion}
        return found | {
            name: section for each in self.conditionings.values() for name, section in each.described.items()
        }

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers; () if there are none."""
        return next((names for each in self.conditionings.values() if (names := getattr(each, "names", ()))), ())

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.denoiser.parameters()).device

    def check(self, where: Path) -> None:
        """Check that the components fit together.

        Raises:
            UserError: names the options that disagree.
        """
        try:
            check_fit(self.sections, self.denoiser_name)
            for each in self.conditionings.values():
                each.check(self)
        except ValueError as error:
            raise UserError(f"the components of {where} do not fit together: {error}") from None

    # --- requests

    def resolve(self, request: Request) -> Request:
        """Let every conditioning fill in what a request leaves open.

        Raises:
            UserError: if a conditioning lacks something, or an option has no conditioning that uses it.
        """
        used = {option for each in self.conditionings.values() for option in each.request_options}
        for option in sorted(_conditional_options() - used):
            default = next(field.default for field in dataclasses.fields(request) if field.name == option)
            if getattr(request, option) != default:
                raise UserError(f"this model is {self.summary}: it does not use {option}, leave it out")
        for each in self.conditionings.values():
            request = each.resolve(request, self)
        return request if request.guidance_scale is not None else replace(request, guidance_scale=1.0)

    @property
    def summary(self) -> str:
        """The names of the conditionings."""
        names = [name.replace("_", " ") for name in self.conditionings if name != "unconditional"]
        return f"conditioned on {' and '.join(names)}" if names else "unconditional"

    def encode_cond_and_uncond(
        self, subjects: Sequence[Subject], request: Request, size: tuple[int, int]
    ) -> tuple[Conditions, Conditions | None]:
        """Encode subjects, one row each, and in one row what guidance moves away from, if anything.

        `size` is width and height of the images in pixels.

        Raises:
            NonFiniteError: if an encoder's output is not finite.
        """
        cond, uncond, guided = Conditions(), Conditions(), False
        for each in self.conditionings.values():
            own, other = each.encode_cond_and_uncond(subjects, request, size, self)
            _require_finite(own, each)
            _require_finite(other or Conditions(), each)
            cond, uncond = cond.merge(own), uncond if other is None else uncond.merge(other)
            guided = guided or (each.guides and other is not None)
        embedded = any(each.replaces_guidance for each in self.conditionings.values())
        return cond, uncond if guided and not embedded else None

    def length(self, subject: Subject, request: Request) -> int:
        """Return the number of text windows of a subject; only subjects of equal length share a batch."""
        return max(each.length(subject, request) for each in self.conditionings.values())


def _require_finite(conditions: Conditions, of: Conditioning) -> None:
    """Raise NonFiniteError for inputs of the denoiser that are not finite; name the networks they come from."""
    weights = [weight for module in of.modules.values() for weight in module.parameters()]
    for tensor in vars(conditions).values():
        if tensor is not None and tensor.is_floating_point():
            require_finite(tensor, " and ".join(of.modules) or of.name, weights[0].dtype if weights else None)


def _conditional_options() -> set[str]:
    return {option for each in all_conditionings() for option in each.request_options}
