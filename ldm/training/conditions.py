"""What a U-Net is told of a batch in training: the seam between its stage and text, classes, images or nothing.

A *condition* is one kind of it. Several stand beside each other, such as a text to attend to and an image joined to
the input: the stage knows none of them by name, and `ldm.training.stages.build` makes them as the configuration says.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from ldm.checkpoint.diffusers.pipeline import Parts
from ldm.config.root import Config
from ldm.config.training import UNetStageConfig
from ldm.data.cached import CachedData
from ldm.data.loader import Batch
from ldm.data.random import StepRandom
from ldm.data.sources import Source
from ldm.errors import UserError
from ldm.models.unet.unet import UNet

Teller = Callable[..., dict[str, Tensor]]  # (the network of all parts, a condition's inputs) -> what the U-Net is told
Draw = Callable[..., list[Image.Image]]  # arguments of `TextToImage` -> images
Fields = dict[str, Any]  # of Parts, by name


# Of `training.unet`, that mean something for some kinds alone.
OPTIONS = {"text_learning_rate", "condition_dropout", "sample_guidance_scale"}
OPTIONS |= {"sample_prompts", "sample_classes", "sample_images", "sample_image"}


class Conditioned(nn.Module):
    """The U-Net and the parts that are trained together with it, as one network with one forward pass.

    Its children have the names of the parts in a pipeline: `unet`, `text_encoder`, ...
    """

    def __init__(self, unet: UNet, trained: Mapping[str, nn.Module], tellers: Sequence[Teller]) -> None:
        super().__init__()
        self.unet = unet
        for name, part in trained.items():
            self.add_module(name, part)
        self.tellers = tuple(tellers)
        self.observed: dict[str, Tensor] = {}  # by tellers, in the last forward pass of training

    def forward(self, noisy: Tensor, t: Tensor, *inputs: tuple[Tensor, ...]) -> Tensor:
        """The U-Net's output (B, C, h, w) for noisy latents at `t` (B,) given the inputs of each condition."""
        told: dict[str, Tensor] = {}
        for tell, given in zip(self.tellers, inputs, strict=True):
            told |= tell(self, *given)
        joined = told.pop("joined", None)  # (B, C', h, w)
        return self.unet(noisy if joined is None else torch.cat([noisy, joined], dim=1), t, **told)


class Condition(ABC):
    """One kind of what a U-Net is told: its parts, how a batch becomes its inputs, and these what is told.

    It is made of the parts of a pipeline once they are there; what is asked before that are class methods.
    """

    options: tuple[str, ...] = ()  # those of OPTIONS that mean something for this kind
    needs_images = False  # even where latents are cached
    data: Source | None = None  # that is trained on, for what `show` takes from it

    def __init__(self, parts: Parts, config: Config, accelerator: Accelerator, cache: CachedData | None) -> None:
        self.parts, self.config, self.accelerator, self.cache = parts, config, accelerator, cache
        self.settings, self.random = config.training.unet, StepRandom(config.training.seed)

    @classmethod
    @abstractmethod
    def check(cls, config: Config, new: bool) -> None:
        """Raise UserError for what cannot be trained, `new` if not from a trained model, before data is made."""

    @classmethod
    def new_parts(cls, config: Config, source: Source, accelerator: Accelerator) -> Fields:
        """The parts of this kind for a U-Net that is told it for the first time; every process comes here."""
        return {}

    @classmethod
    def own_parts(cls, config: Config, source: Source, saved: Parts, where: str) -> Fields:
        """The parts of a run that goes on, whose trained weights follow; UserError if they are not what is asked."""
        found = cls.given_parts(config, source, saved, where)
        if found is None:
            raise UserError(f"the run {where} is not what the configuration describes: it was told other things")
        return found

    @classmethod
    def given_parts(cls, config: Config, source: Source, given: Parts, where: str) -> Fields | None:
        """The parts of a model to start from; None if new ones are needed, UserError if they are not what is asked."""
        return {}

    @property
    def trained(self) -> Mapping[str, nn.Module]:
        """What is trained together with the U-Net, by its name in `Parts`."""
        return {}

    @property
    def rates(self) -> Mapping[str, float]:
        """Learning rates that these parts have for themselves, as `learning_rates` of a stage."""
        return {}

    @abstractmethod
    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """What `teller` is given of a batch, on the device: after frozen networks, a share of it dropped."""

    @property
    @abstractmethod
    def teller(self) -> Teller:
        """A plain function of the `Conditioned` network and the inputs, called within the forward pass.

        It gives arguments of the U-Net by name, `context` (B, L, D) or `classes` (B,), and `joined` (B, C', h, w),
        which stands behind the noisy latents in its input. Averages call it as well, with their copies of the parts.
        """

    def examples(self) -> Fields | None:
        """Arguments of `TextToImage` for the images that show how far training has come; None for no images."""
        return {}

    def show(self, draw: Draw) -> list[Image.Image] | None:
        """Images in threes: what is told of a sample of the data, what is drawn of it, and the sample itself.

        None for a kind that needs no data to show what it does.
        """
        return None

    def dropped(self, batch: Batch) -> list[bool]:
        """Which samples are told nothing, for guidance without a classifier (Ho and Salimans 2022)."""
        draws = self.random.uniform("condition", batch.step, batch.slots).tolist()
        return [draw < self.settings.condition_dropout for draw in draws]


def conditioned(unet: UNet, conditions: Sequence[Condition]) -> Conditioned:
    """The network that is trained with these conditions."""
    trained = {name: part for condition in conditions for name, part in condition.trained.items()}
    return Conditioned(unet, trained, [condition.teller for condition in conditions])


def check_options(config: Config, kinds: Sequence[type[Condition]]) -> None:
    """Raise UserError for an option of `training.unet` that belongs to none of the kinds and was changed."""
    known = {name for kind in kinds for name in kind.options}
    settings, fields = config.training.unet, UNetStageConfig.model_fields
    for name in sorted(OPTIONS - known):
        if getattr(settings, name) != fields[name].default:
            raise UserError(f"training.unet.{name} means nothing for a U-Net that is told {', '.join(config.told)}")


class Nothing(Condition):
    """A U-Net that is told nothing."""

    options = ("sample_images",)

    @classmethod
    def check(cls, config: Config, new: bool) -> None:
        """There is nothing to refuse."""

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """None."""
        return ()

    @property
    def teller(self) -> Teller:
        """Tells nothing."""
        return tell_nothing

    def examples(self) -> Fields | None:
        """`sample_images` of them."""
        return {"num_images": self.settings.sample_images} if self.settings.sample_images else None


def tell_nothing(network: nn.Module) -> dict[str, Tensor]:
    """A `Teller`."""
    return {}
