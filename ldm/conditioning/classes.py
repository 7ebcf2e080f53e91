"""Conditioning on a class: one context token per class, or the denoiser's own table of classes.

With condition dropout the last class stands for none, as in latent-diffusion's ImageNet model with 1001 rows
(configs/published/cin256-v2.yaml): a share of the images is trained with it, and guidance moves away from it.
"""

from __future__ import annotations

import difflib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from ldm.conditioning.base import (
    GUIDANCE_SCALE,
    Conditioning,
    DenoiserInputs,
    Meta,
    Part,
    Sections,
    StoredPipeline,
    Subject,
    TrainingContext,
)
from ldm.conditioning.conditional_denoiser import ConditioningFn, pass_on
from ldm.conditioning.conditions import Conditions
from ldm.config.compatibility import differing
from ldm.config.section import Section, Width
from ldm.errors import UserError
from ldm.storage.component import component_section, load_component, save_component
from ldm.storage.fields import Fields

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ldm.checkpoint.pipeline import Pipeline
    from ldm.config.root import Config
    from ldm.data.loader import Batch
    from ldm.data.sources import Source
    from ldm.generation.request import Request

NAMES, EMPTY = "id2label", "empty_class"  # in `model_index.json`; the first is the name that diffusers' DiTPipeline has


class ClassesConfig(Section):
    """A table with one context token per class (Rombach et al. 2022, section 4.4)."""

    num_classes: int = Field(1000, ge=1)  # rows; with training.unet.condition_dropout the last stands for no class
    hidden_size: Width = Field(512, ge=1)  # width of the context


class ClassEmbedder(nn.Module):
    """A table with one context token per class."""

    def __init__(self, config: ClassesConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.num_classes, config.hidden_size)

    def forward(self, labels: Tensor) -> Tensor:
        """Map labels (B,) to the context (B, 1, D)."""
        return self.embedding(labels)[:, None]


class ClassConditioning(Conditioning):
    """Base of both kinds of class conditioning."""

    training_options = frozenset({"condition_dropout", "sample_classes", "sample_guidance_scale"})
    request_options = frozenset({"classes", "negative_class"})
    uses_labels = True
    option: ClassVar[str]  # of the configuration, with the number of rows

    def __init__(self, names: Sequence[str] = (), empty: int | None = None) -> None:
        """Take the `names` of the classes by number, if known, and the class `empty` that stands for none, if any."""
        self.names, self.empty = tuple(names), empty

    @classmethod
    @abstractmethod
    def rows(cls, config: Config) -> int:
        """Return the number of rows of the class table in a configuration, including the empty class."""

    @abstractmethod
    def count(self, pipeline: Pipeline) -> int:
        """Return the number of rows in a pipeline's class table, including the empty class."""

    @property
    def facts(self) -> dict[str, Any]:
        return class_facts(self.names, self.empty)

    def check(self, pipeline: Pipeline) -> None:
        rows = self.count(pipeline)
        needed = rows if self.empty is None else rows - 1
        if self.names and len(self.names) != needed:
            raise ValueError(f"{NAMES} names {len(self.names)} classes, but there are {needed} without the empty class")
        if self.empty is not None and self.empty >= rows:
            raise ValueError(f"{EMPTY} is {self.empty}, but there are classes 0 to {rows - 1}")

    # --- training

    @classmethod
    def check_training(cls, config: Config, new: bool) -> None:
        if cls.rows(config) == 1 and config.training.unet.condition_dropout:
            raise UserError(
                f"{cls.option} is 1, but with training.unet.condition_dropout the last class stands for none"
            )

    @classmethod
    def facts_of(cls, config: Config, source: Source) -> tuple[tuple[str, ...], int | None]:
        """Return the data's class names, and the empty class.

        Raises:
            UserError: if the number of rows in the table does not match.
        """
        names, rows = tuple(source.class_names), cls.rows(config)
        empty = rows - 1 if config.training.unet.condition_dropout else None
        if names and len(names) != (rows if empty is None else empty):
            needed = len(names) if empty is None else len(names) + 1
            one = "" if empty is None else ", one of which stands for no class (training.unet.condition_dropout)"
            raise UserError(f"the data has {len(names)} classes: set {cls.option} to {needed}{one}, not {rows}")
        return names, empty

    @classmethod
    def resume(cls, config: Config, source: Source, saved: Pipeline, where: str) -> Self:
        found, names = cls.of(saved), tuple(source.class_names)
        if found is None:
            raise UserError(f"the run {where} has no classes, which the configuration describes")
        if names != found.names:
            new = [name for name in names if name not in found.names][:3]
            raise UserError(
                f"the classes of the data differ from those of {where}{': ' + ', '.join(new) if new else ''}"
            )
        dropout = config.training.unet.condition_dropout
        if (found.empty is None) == bool(dropout):
            has = "no" if found.empty is None else "an"
            raise UserError(
                f"training.unet.condition_dropout is {dropout:g}, but the run has {has} empty class: keep it"
            )
        return found

    def training_inputs(self, batch: Batch, context: TrainingContext) -> tuple[Tensor, ...]:
        """Return the classes (B,), the dropped ones replaced by the empty class."""
        rows = self.rows(context.config)
        known = rows if self.empty is None else self.empty
        for index, label in zip(batch.indices, batch.labels, strict=True):
            if label >= known:
                limit = f"up to {known - 1}" + ("" if self.empty is None else ", the last row stands for none")
                raise UserError(f"image {index} has class {label}, but {self.option} is {rows}, which allows {limit}")
        dropped = context.dropped(batch) if self.empty is not None else [False] * len(batch.labels)
        found = [self.empty if drop else label for label, drop in zip(batch.labels, dropped, strict=True)]
        return (context.to_device(torch.tensor(found)),)

    def sample_options(self, context: TrainingContext) -> dict[str, Any] | None:
        classes = list(context.settings.sample_classes)
        if not classes:
            return None
        scale = None if self.empty is None else context.settings.sample_guidance_scale
        return {"classes": classes, "guidance_scale": scale}

    # --- inference

    def resolve(self, request: Request, pipeline: Pipeline) -> Request:
        """Replace names by numbers."""
        count = self.count(pipeline)
        if not request.classes:
            raise UserError(f"this model generates from classes: give one of 0 to {count - 1} (--class)")
        classes = tuple(class_number(each, count, self.names, "this model") for each in request.classes)
        negative = request.negative_class
        if negative is not None:
            negative = class_number(negative, count, self.names, "this model")
        guided = negative is not None or self.empty is not None
        if not guided and request.guidance_scale not in (None, 1):
            raise UserError("guidance by classes needs a class to move away from: give a negative class")
        usual = GUIDANCE_SCALE if guided else 1.0
        scale = usual if request.guidance_scale is None else request.guidance_scale
        return replace(request, classes=classes, negative_class=negative, guidance_scale=scale)

    def encode_cond_and_uncond(
        self, subjects: Sequence[Subject], request: Request, size: tuple[int, int], pipeline: Pipeline
    ) -> tuple[Conditions, Conditions | None]:
        other = self.empty if request.negative_class is None else request.negative_class
        return self.encode(subjects, pipeline), None if other is None else self.encode([int(other)], pipeline)

    @abstractmethod
    def encode(self, classes: Sequence[int], pipeline: Pipeline) -> Conditions:
        """Encode class numbers."""


class ClassTokens(ClassConditioning):
    """One context token per class (Rombach et al. 2022, section 4.4)."""

    name = "classes"
    sections: ClassVar[Mapping[str, tuple[Any, Any]]] = {"classes": (ClassesConfig | None, None)}
    option = "classes.num_classes"

    def __init__(self, embedder: ClassEmbedder, names: Sequence[str] = (), empty: int | None = None) -> None:
        super().__init__(names, empty)
        self.embedder = embedder

    @classmethod
    def is_used(cls, sections: Sections) -> bool:
        return sections.get("classes") is not None

    @classmethod
    def denoiser_inputs(cls, sections: Sections) -> DenoiserInputs:
        return DenoiserInputs(context={"classes.hidden_size": sections["classes"].hidden_size})

    @property
    def described(self) -> dict[str, Section]:
        return {"classes": self.embedder.config}

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"classes": self.embedder}

    def with_modules(self, modules: Mapping[str, Any]) -> ClassTokens:
        return ClassTokens(modules.get("classes", self.embedder), self.names, self.empty)

    @property
    def parts(self) -> dict[str, Part]:
        return {"classes": ("ldm", "ClassEmbedder")}

    @classmethod
    def known_parts(cls) -> Mapping[str, tuple[Part, ...]]:
        return {"classes": (("ldm", "ClassEmbedder"),)}

    def save(self, places: Mapping[str, Path], dtype: torch.dtype | None, shard_size: int) -> None:
        save_component(self.embedder, places["classes"], dtype)

    @classmethod
    def load(cls, stored: StoredPipeline) -> Self | None:
        if "classes" not in stored.places:
            return None
        return cls(
            load_component(ClassEmbedder, ClassesConfig, stored.places["classes"], stored.dtype),
            *read_facts(stored.index),
        )

    @classmethod
    def rows(cls, config: Config) -> int:
        return int(config.classes.num_classes)

    def count(self, pipeline: Pipeline) -> int:
        return self.embedder.config.num_classes

    @classmethod
    def create(cls, config: Config, source: Source, accelerator: Accelerator) -> Self:
        facts = cls.facts_of(config, source)
        return cls(ClassEmbedder(config.classes), *facts)

    @classmethod
    def adopt(cls, config: Config, source: Source, given: Pipeline, where: str) -> Self | None:
        """Take the table of a model with the same classes; otherwise the table is new."""
        found = cls.of(given)
        if found is None or differing(found.embedder.config, config.classes):
            return None
        return found if cls.facts_of(config, source) == (found.names, found.empty) else None

    @classmethod
    def conditioning_fn(cls, config: Config) -> ConditioningFn:
        return lambda network, labels: ({"context": network.classes(labels)}, {})

    @classmethod
    def meta(cls, config: Config) -> Meta:
        return Meta((torch.zeros(1, dtype=torch.long),), {"classes": ClassEmbedder(config.classes)})

    def encode(self, classes: Sequence[int], pipeline: Pipeline) -> Conditions:
        return Conditions(context=self.embedder(torch.tensor(classes, device=pipeline.device)))


class ClassTable(ClassConditioning):
    """A row per class in the denoiser's own table, added to the time embedding (Dhariwal and Nichol 2021)."""

    name = "class_table"
    option = "unet.num_class_embeds"

    @classmethod
    def is_used(cls, sections: Sections) -> bool:
        return getattr(sections.get("denoiser"), "num_classes", None) is not None

    @classmethod
    def load(cls, stored: StoredPipeline) -> Self | None:
        return None if stored.denoiser.num_classes is None else cls(*read_facts(stored.index))

    @classmethod
    def rows(cls, config: Config) -> int:
        return int(config.denoiser.num_classes or 0)

    def count(self, pipeline: Pipeline) -> int:
        return int(pipeline.denoiser.config.num_classes or 0)

    @classmethod
    def create(cls, config: Config, source: Source, accelerator: Accelerator) -> Self:
        return cls(*cls.facts_of(config, source))

    @classmethod
    def adopt(cls, config: Config, source: Source, given: Pipeline, where: str) -> Self | None:
        """Keep the names of the data: the table belongs to the denoiser."""
        return None

    @classmethod
    def conditioning_fn(cls, config: Config) -> ConditioningFn:
        return pass_on("classes")

    @classmethod
    def meta(cls, config: Config) -> Meta:
        return Meta((torch.zeros(1, dtype=torch.long),))

    def encode(self, classes: Sequence[int], pipeline: Pipeline) -> Conditions:
        return Conditions(classes=torch.tensor(classes, dtype=torch.int64, device=pipeline.device))


def class_facts(names: Sequence[str], empty: int | None) -> dict[str, Any]:
    """Return the fields of `model_index.json` for class names and the empty class."""
    labels = {str(number): name for number, name in enumerate(names)}
    return ({NAMES: labels} if labels else {}) | ({} if empty is None else {EMPTY: empty})


def classes_from_fields(fields: Fields, where: Path) -> ClassesConfig:
    """Return the section in a `config.json`.

    Raises:
        UserError: for an unknown field.
    """
    return component_section(ClassesConfig, fields, where, ClassEmbedder.__name__)


def read_facts(index: Mapping[str, Any]) -> tuple[tuple[str, ...], int | None]:
    """Return class names, () if there are none, and the empty class from `model_index.json`.

    Raises:
        UserError: if a field is damaged.
    """
    labels, empty = index.get(NAMES, {}), index.get(EMPTY)
    whole = isinstance(labels, dict) and list(labels) == [str(number) for number in range(len(labels))]
    if not whole or not all(isinstance(name, str) for name in labels.values()):
        raise UserError(f"model_index.json: {NAMES} does not map 0, 1, ... to names")
    if empty is not None and (type(empty) is not int or empty < 0):
        raise UserError(f"model_index.json: {EMPTY} is {empty!r}, not a class")
    return tuple(labels.values()), empty


def class_number(given: int | str, count: int, names: Sequence[str], owner: str) -> int:
    """Return the number of a class given by name or number.

    Raises:
        UserError: if `owner` has no such class.
    """
    if isinstance(given, str) and given in names:
        return names.index(given)
    number = int(given) if isinstance(given, int) or given.isdecimal() else -1
    if 0 <= number < count:
        return number
    near = difflib.get_close_matches(str(given), names, n=1)
    named = f", such as {', '.join(names[:3])}" if names else ""
    raise UserError(
        f"no class {given}: {owner} has classes 0 to {count - 1}{f'; did you mean {near[0]!r}?' if near else named}"
    )
