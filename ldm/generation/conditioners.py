"""Prompts and classes to what the U-Net is told, by the parts that a model has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch

from ldm.checkpoint.parts import Parts
from ldm.conditioning.text.composition import spread
from ldm.conditioning.text.prompts import Prompts
from ldm.errors import UserError
from ldm.generation.class_names import class_number
from ldm.generation.condition import Condition
from ldm.generation.image_variations import ImageConditioner
from ldm.generation.request import Request, SizeConditioning, Subject
from ldm.models.denoiser import Added

GUIDANCE_SCALE = 3.0  # where there is something to guide away from and nothing else is asked for


class Conditioner(Protocol):
    """How the subjects of a request become conditions; `size` is the images' width and height in pixels."""

    def resolve(self, request: Request) -> Request:
        """The request with its guidance scale; raises UserError where it asks for what the model does not know."""

    def __call__(self, subjects: Sequence[Subject], request: Request, size: tuple[int, int]) -> Condition:
        """The condition of these subjects."""

    def encode_cond_and_uncond(
        self, subjects: Sequence[Subject], request: Request, size: tuple[int, int]
    ) -> tuple[Condition, Condition | None]:
        """The condition of these subjects, and that of one image which is guided away from, if any."""

    def length(self, subject: Subject, request: Request) -> int:
        """How long the context of a subject is; only those of one length can be drawn together."""


def make_conditioner(parts: Parts) -> Conditioner:
    """The conditioner of a model of text, of classes, of another image, or of nothing."""
    if parts.texts:
        return TextConditioner(parts)
    if parts.num_classes is not None:
        return ClassConditioner(parts, parts.num_classes)
    if parts.image_encoder is not None:
        return ImageConditioner(parts, parts.image_encoder, GUIDANCE_SCALE)
    return NoConditioner()


class TextConditioner:
    """Prompts through one or two text encoders; the contexts of two are joined width to width (SDXL)."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.prompts = parts, Prompts(parts.texts)
        self.knows_sizes = parts.unet.config.addition_embed_type is not None

    def resolve(self, request: Request) -> Request:
        """Require prompts; size_conditioning only for models trained with it. Warn about prompts that are cut."""
        if request.classes or request.negative_class is not None:
            raise UserError("this model draws prompts, it knows no classes")
        if not request.prompts:
            raise UserError("there is no prompt to draw: give a PROMPT, or several")
        if request.size_conditioning is not None and not self.knows_sizes:
            raise UserError("this model was not told sizes and crops in training: leave size_conditioning out")
        _refuse_reference(request)
        self.prompts.warn_of_cuts(request)
        return request if request.guidance_scale is not None else replace(request, guidance_scale=GUIDANCE_SCALE)

    def __call__(self, subjects: Sequence[Subject], request: Request, size: tuple[int, int]) -> Condition:
        """Every text is encoded once."""
        unique = list(dict.fromkeys(subjects))
        encoded = self.prompts.encode([str(text) for text in unique], request)
        condition = Condition(encoded.context)
        if self.knows_sizes:
            assert encoded.pooled is not None  # the parts of a pipeline fit
            sizes = (request.size_conditioning or SizeConditioning()).sizes(size)
            told = torch.tensor(sizes, dtype=torch.float32, device=encoded.context.device)  # (6)
            condition = replace(condition, added=Added(encoded.pooled, told.expand(len(unique), -1)))
        return condition.rows([unique.index(text) for text in subjects])

    def encode_cond_and_uncond(
        self, subjects: Sequence[Subject], request: Request, size: tuple[int, int]
    ) -> tuple[Condition, Condition | None]:
        """Guided away from is the negative prompt, or in some models, where there is none, a text of zeros."""
        both = self([*subjects, request.negative_prompt], request, size)
        positive, negative = both.rows(slice(len(subjects))), both.rows(slice(len(subjects), None))
        zeros = self.parts.zeros_for_empty_prompt and not request.negative_prompt
        return positive, negative.silent() if zeros else negative

    def length(self, subject: Subject, request: Request) -> int:
        """The windows of the longest of its texts and the negative prompt; the others are padded to as many."""
        return self.prompts.count([*map(str, spread([subject])[0]), request.negative_prompt], request)


class ClassConditioner:
    """Classes, by a token each that the U-Net attends to or by a table of its own."""

    def __init__(self, parts: Parts, num_classes: int) -> None:
        self.parts, self.num_classes, self.empty = parts, num_classes, parts.empty_class

    def resolve(self, request: Request) -> Request:
        """Classes alone are drawn, by their numbers from here on; guidance needs one to guide away from."""
        if request.prompts or request.negative_prompt:
            raise UserError("this model draws classes, it knows no prompts: give classes (--class) instead")
        if not request.classes:
            raise UserError(f"there is no class to draw: give classes (--class) from 0 to {self.num_classes - 1}")
        negative = self.empty if request.negative_class is None else self._number(request.negative_class)
        classes = tuple(self._number(each) for each in request.classes)
        request = replace(request, classes=classes, negative_class=None if request.negative_class is None else negative)
        _refuse_ways_of_text(request)
        guided = negative is not None
        if not guided and request.guidance_scale not in (None, 1):
            raise UserError("guidance in a model of classes needs one to guide away from: give a negative class")
        if request.guidance_scale is not None:
            return request
        return replace(request, guidance_scale=GUIDANCE_SCALE if guided else 1.0)

    def __call__(self, subjects: Sequence[Subject], request: Request, size: tuple[int, int]) -> Condition:
        """The subjects are classes."""
        labels = torch.tensor(subjects, dtype=torch.int64, device=self.parts.device)  # (B)
        return Condition(classes=labels) if self.parts.classes is None else Condition(self.parts.classes(labels))

    def encode_cond_and_uncond(
        self, subjects: Sequence[Subject], request: Request, size: tuple[int, int]
    ) -> tuple[Condition, Condition | None]:
        """Guided away from is the negative class, or the empty one of a model that has been told it."""
        other = self.empty if request.negative_class is None else request.negative_class
        return self(subjects, request, size), None if other is None else self([other], request, size)

    def length(self, subject: Subject, request: Request) -> int:
        """One token a class."""
        return 1

    def _number(self, given: int | str) -> int:
        """The number of a class given by its name or its number; UserError for one that there is not."""
        return class_number(given, self.num_classes, self.parts.class_names, "this model")


class NoConditioner:
    """A model that draws what it draws."""

    def resolve(self, request: Request) -> Request:
        """Nothing can be asked for."""
        if request.prompts or request.negative_prompt or request.classes or request.negative_class is not None:
            raise UserError("this model is unconditional: it knows no prompts and no classes, give none")
        if request.guidance_scale not in (None, 1):
            raise UserError("this model is unconditional: guidance has nothing to guide to, leave its scale out")
        _refuse_ways_of_text(request)
        return replace(request, guidance_scale=1.0)

    def __call__(self, subjects: Sequence[Subject], request: Request, size: tuple[int, int]) -> Condition:
        """Of nothing."""
        return Condition()

    def encode_cond_and_uncond(
        self, subjects: Sequence[Subject], request: Request, size: tuple[int, int]
    ) -> tuple[Condition, Condition | None]:
        """Of nothing, which is guided away from nothing."""
        return Condition(), None

    def length(self, subject: Subject, request: Request) -> int:
        """No context."""
        return 1


def _refuse_reference(request: Request) -> None:
    if request.reference is not None:
        raise UserError("this model was not made to vary an image: give it as image, to start from, and a strength")


def _refuse_ways_of_text(request: Request) -> None:
    """Raise UserError for what a request says about prompts, or an image to vary, in a model that knows neither."""
    _refuse_reference(request)
    if request.size_conditioning is not None:
        raise UserError("size_conditioning is for models that were told sizes and crops in training: leave it out")
    if request.long_prompts or request.prompt_syntax != "plain":
        raise UserError("prompt syntax and long prompts are for models of text: leave them out")
