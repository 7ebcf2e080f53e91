"""Prompts and classes to what the U-Net is told, by the parts that a model has."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch

from ldm.checkpoint.parts import Parts
from ldm.errors import UserError
from ldm.models.text import Encoded
from ldm.models.unet import Added
from ldm.pipeline.condition import Condition
from ldm.pipeline.request import Framing, Request, Subject

GUIDANCE_SCALE = 3.0  # where there is something to guide away from and nothing else is asked for


class Conditioner(Protocol):
    """How the subjects of a request become conditions; `size` is the pictures' width and height in pixels."""

    def settle(self, request: Request) -> Request:
        """The request with its guidance scale; raises UserError where it asks for what the model does not know."""

    def __call__(self, subjects: Sequence[Subject], request: Request, size: tuple[int, int]) -> Condition:
        """The condition of these subjects."""

    def pair(
        self, subjects: Sequence[Subject], request: Request, size: tuple[int, int]
    ) -> tuple[Condition, Condition | None]:
        """The condition of these subjects, and that of one picture which is guided away from, if any."""


def make_conditioner(parts: Parts) -> Conditioner:
    """The conditioner of a model of text, of classes, or of nothing."""
    if parts.texts:
        return TextConditioner(parts)
    if parts.num_classes is not None:
        return ClassConditioner(parts, parts.num_classes)
    return NoConditioner()


class TextConditioner:
    """Prompts through one or two text encoders; the contexts of two are joined width to width (SDXL)."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.knows_sizes = parts.unet.config.addition_embed_type is not None

    def settle(self, request: Request) -> Request:
        """Prompts alone are drawn, and framing only where the model was told it."""
        if request.classes or request.negative_class is not None:
            raise UserError("this model draws prompts, it knows no classes")
        if not request.prompts:
            raise UserError("there is no prompt to draw: give a PROMPT, or several")
        if request.framing is not None and not self.knows_sizes:
            raise UserError("this model was not told sizes and crops in training: leave framing out")
        return request if request.guidance_scale is not None else replace(request, guidance_scale=GUIDANCE_SCALE)

    def __call__(self, subjects: Sequence[Subject], request: Request, size: tuple[int, int]) -> Condition:
        """Every text is encoded once."""
        unique = list(dict.fromkeys(subjects))
        encoded = self._encode([str(text) for text in unique])
        condition = Condition(encoded.context)
        if self.knows_sizes:
            assert encoded.pooled is not None  # the parts of a pipeline fit
            sizes = (request.framing or Framing()).sizes(size)
            told = torch.tensor(sizes, dtype=torch.float32, device=encoded.context.device)  # (6)
            condition = replace(condition, added=Added(encoded.pooled, told.expand(len(unique), -1)))
        return condition.rows([unique.index(text) for text in subjects])

    def pair(
        self, subjects: Sequence[Subject], request: Request, size: tuple[int, int]
    ) -> tuple[Condition, Condition | None]:
        """Guided away from is the negative prompt, or in some models, where there is none, a text of zeros."""
        both = self([*subjects, request.negative_prompt], request, size)
        positive, negative = both.rows(slice(len(subjects))), both.rows(slice(len(subjects), None))
        zeros = self.parts.zeros_for_empty_prompt and not request.negative_prompt
        return positive, negative.silent() if zeros else negative

    def _encode(self, texts: list[str]) -> Encoded:
        """Contexts (B, L, D) beside each other, and the last encoder's pooled text (B, P)."""
        device, found = self.parts.device, []
        for text_encoder, tokenizer in self.parts.texts:
            ids, mask = tokenizer(texts)
            found.append(text_encoder(ids.to(device), mask.to(device)))
        context = found[0].context if len(found) == 1 else torch.cat([each.context for each in found], dim=-1)
        return Encoded(context, found[-1].pooled)


class ClassConditioner:
    """Classes, by a token each that the U-Net attends to or by a table of its own."""

    def __init__(self, parts: Parts, num_classes: int) -> None:
        self.parts, self.num_classes, self.empty = parts, num_classes, parts.empty_class

    def settle(self, request: Request) -> Request:
        """Classes alone are drawn, by their numbers from here on; guidance needs one to guide away from."""
        if request.prompts or request.negative_prompt:
            raise UserError("this model draws classes, it knows no prompts: give classes (--class) instead")
        if not request.classes:
            raise UserError(f"there is no class to draw: give classes (--class) from 0 to {self.num_classes - 1}")
        negative = self.empty if request.negative_class is None else self._number(request.negative_class)
        classes = tuple(self._number(each) for each in request.classes)
        request = replace(request, classes=classes, negative_class=None if request.negative_class is None else negative)
        _refuse_framing(request)
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

    def pair(
        self, subjects: Sequence[Subject], request: Request, size: tuple[int, int]
    ) -> tuple[Condition, Condition | None]:
        """Guided away from is the negative class, or the empty one of a model that has been told it."""
        other = self.empty if request.negative_class is None else request.negative_class
        return self(subjects, request, size), None if other is None else self([other], request, size)

    def _number(self, given: int | str) -> int:
        """The number of a class given by its name or its number; UserError for one that there is not."""
        names = self.parts.class_names
        if isinstance(given, str) and given in names:
            return names.index(given)
        number = int(given) if isinstance(given, int) or given.isdecimal() else -1
        if 0 <= number < self.num_classes:
            return number
        near = difflib.get_close_matches(str(given), names, n=1)
        named = f", such as {', '.join(names[:3])}" if names else ""
        hint = f"; did you mean {near[0]!r}?" if near else f"{named}"
        raise UserError(f"class {given}: this model has classes 0 to {self.num_classes - 1}{hint}")


class NoConditioner:
    """A model that draws what it draws."""

    def settle(self, request: Request) -> Request:
        """Nothing can be asked for."""
        if request.prompts or request.negative_prompt or request.classes or request.negative_class is not None:
            raise UserError("this model is unconditional: it knows no prompts and no classes, give none")
        if request.guidance_scale not in (None, 1):
            raise UserError("this model is unconditional: guidance has nothing to guide to, leave its scale out")
        _refuse_framing(request)
        return replace(request, guidance_scale=1.0)

    def __call__(self, subjects: Sequence[Subject], request: Request, size: tuple[int, int]) -> Condition:
        """Of nothing."""
        return Condition()

    def pair(
        self, subjects: Sequence[Subject], request: Request, size: tuple[int, int]
    ) -> tuple[Condition, Condition | None]:
        """Of nothing, which is guided away from nothing."""
        return Condition(), None


def _refuse_framing(request: Request) -> None:
    if request.framing is not None:
        raise UserError("framing is for models that were told sizes and crops in training: leave it out")
