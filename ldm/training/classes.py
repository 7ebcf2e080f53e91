"""Classes, as a token each that the U-Net attends to, or as a table that the U-Net has itself.

With condition dropout the last class of the table stands for none, as in the original's model of ImageNet, whose table
has 1001 rows (configs/published/cin256-v2.yaml): a share of the images is told it, and guidance goes away from it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm.checkpoint.diffusers.pipeline import Parts
from ldm.conditioning.classes import ClassEmbedder
from ldm.config.root import Config
from ldm.data.loader import Batch
from ldm.data.sources import Source
from ldm.errors import UserError
from ldm.training.compatibility import differing
from ldm.training.conditions import Condition, Fields, Teller
from ldm.training.transfer import moved


class ClassCondition(Condition):
    """The class of each image; a share of them is the empty class, which is the last."""

    options = ("condition_dropout", "sample_classes", "sample_guidance_scale")
    option: str  # of the configuration, that says how many classes there are

    @classmethod
    @abstractmethod
    def rows(cls, config: Config) -> int:
        """Of the table, with that of the empty class."""

    @classmethod
    def check(cls, config: Config, new: bool) -> None:
        """An empty class needs another beside it."""
        if cls.rows(config) == 1 and config.training.unet.condition_dropout:
            raise UserError(f"{cls.option} is 1: with training.unet.condition_dropout the last class stands for none")

    @classmethod
    def new_parts(cls, config: Config, source: Source, accelerator: Accelerator) -> Fields:
        """What is known of the classes."""
        return cls.facts(config, source)

    @classmethod
    def facts(cls, config: Config, source: Source) -> Fields:
        """Names of the classes, where the data has them, and the number of the empty one; UserError for other rows."""
        names, rows = tuple(source.class_names), cls.rows(config)
        empty = rows - 1 if config.training.unet.condition_dropout else None
        if names and len(names) != (rows if empty is None else empty):
            needed = len(names) if empty is None else len(names) + 1
            one = "" if empty is None else ", with one that stands for none (training.unet.condition_dropout)"
            raise UserError(f"the data has {len(names)} classes: {cls.option} must be {needed}{one}, not {rows}")
        return {"class_names": names, "empty_class": empty}

    @classmethod
    def own_parts(cls, config: Config, source: Source, saved: Parts, where: str) -> Fields:
        """Those of the run; UserError where the data has other classes, or the empty one comes or goes."""
        names = tuple(source.class_names)
        if names != saved.class_names:
            new = [name for name in names if name not in saved.class_names][:3]
            raise UserError(f"the classes of the data are not those of {where}{': ' + ', '.join(new) if new else ''}")
        if (saved.empty_class is None) == bool(config.training.unet.condition_dropout):
            raise UserError(
                f"training.unet.condition_dropout {config.training.unet.condition_dropout:g} in a run that "
                f"has {'an' if saved.empty_class is not None else 'no'} empty class: it cannot come or go"
            )
        return {"class_names": saved.class_names, "empty_class": saved.empty_class}

    def labels(self, batch: Batch) -> Tensor:
        """The classes (B,), those that are dropped replaced by the empty one; UserError for one that there is not."""
        empty, rows = self.parts.empty_class, self.rows(self.config)
        known = rows if empty is None else empty
        for index, label in zip(batch.indices, batch.labels, strict=True):
            if label >= known:
                raise UserError(f"image {index} of the data has class {label}; {self.option} {rows} {self._reach()}")
        dropped = self.dropped(batch) if empty is not None else [False] * len(batch.labels)
        found = [empty if drop else label for label, drop in zip(batch.labels, dropped, strict=True)]
        return moved(torch.tensor(found), self.accelerator.device)

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """The classes (B,)."""
        return (self.labels(batch),)

    def examples(self) -> Fields | None:
        """An image of each of `sample_classes`."""
        classes = list(self.settings.sample_classes)
        if not classes:
            return None
        guided = self.parts.empty_class is not None  # else there is nothing to guide away from
        scale = self.settings.sample_guidance_scale if guided else None
        return {"classes": classes, "guidance_scale": scale}

    def _reach(self) -> str:
        empty = self.parts.empty_class
        return "allows less" if empty is None else f"allows up to {empty - 1}, the last one stands for none"


class TokenCondition(ClassCondition):
    """A token for each class (Rombach et al. 2022, section 4.4)."""

    option = "classes.num_classes"

    @classmethod
    def rows(cls, config: Config) -> int:
        """Of the table beside the U-Net."""
        assert config.classes is not None
        return config.classes.num_classes

    @classmethod
    def new_parts(cls, config: Config, source: Source, accelerator: Accelerator) -> Fields:
        """A new table, and what is known of the classes."""
        assert config.classes is not None
        return cls.facts(config, source) | {"classes": ClassEmbedder(config.classes)}

    @classmethod
    def own_parts(cls, config: Config, source: Source, saved: Parts, where: str) -> Fields:
        """The table of the run, and what is known of the classes."""
        return super().own_parts(config, source, saved, where) | {"classes": saved.classes}

    @classmethod
    def given_parts(cls, config: Config, source: Source, given: Parts, where: str) -> Fields | None:
        """The table of a model with the same classes; of others it begins anew."""
        assert config.classes is not None
        if given.classes is None or differing(given.classes.config, config.classes):
            return None
        made = cls.facts(config, source)
        same = made["class_names"] == given.class_names and made["empty_class"] == given.empty_class
        return made | {"classes": given.classes} if same else None

    @property
    def trained(self) -> Mapping[str, nn.Module]:
        """The table."""
        assert self.parts.classes is not None
        return {"classes": self.parts.classes}

    @property
    def teller(self) -> Teller:
        """Looks up in the forward pass."""
        return tell_token


class TableCondition(ClassCondition):
    """A row of the U-Net's own table for each class, which joins the time step (Dhariwal and Nichol 2021)."""

    option = "unet.num_class_embeds"

    @classmethod
    def rows(cls, config: Config) -> int:
        """Of the U-Net's own table."""
        rows = config.need_unet().num_class_embeds
        assert rows is not None
        return rows

    @classmethod
    def given_parts(cls, config: Config, source: Source, given: Parts, where: str) -> Fields | None:
        """None: the table is the U-Net's."""
        return None

    @property
    def teller(self) -> Teller:
        """Hands on the classes."""
        return tell_classes


def tell_token(network: Any, labels: Tensor) -> dict[str, Tensor]:
    """A `Teller` of classes (B,) by a token each."""
    return {"context": network.classes(labels)}


def tell_classes(network: nn.Module, labels: Tensor) -> dict[str, Tensor]:
    """A `Teller` of classes (B,) to a U-Net that has a table of them."""
    return {"classes": labels}
