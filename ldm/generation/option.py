"""Options of a request: their help texts, and their values on the command line."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ldm.errors import UserError
from ldm.storage.text import read_text

if TYPE_CHECKING:
    import torch
    from PIL import Image

SAMPLING, PROMPT, GUIDANCE, IMAGE = "Sampling", "Prompt", "Guidance", "Image size and input images"  # groups of --help
F = TypeVar("F", bound=Callable[..., Any])

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Option:
    """What a field of a request is outside Python."""

    help: str
    type: Any = None  # on the command line; None: the field is no option there
    flag: str | None = None  # None: the field's name
    group: str = SAMPLING
    metavar: str | None = None
    shown: str | None = None  # the default as --help shows it; None: the field's, "": nothing
    parse: Callable[[Any], Any] = lambda value: value  # from `type` to the field's value
    minimum: int | None = None
    record: str | None = None  # name among the parameters in PNG files; None: the field's name, "": not recorded


def option(default: Any, text: str, kind: Any = None, **more: Any) -> Any:
    """Return a field of `Request` with its `Option`."""
    return field(default=default, metadata={"option": Option(text, kind, **more)})


def takes_fields(of: Any, besides: Sequence[str] = ()) -> Callable[[F], F]:
    """Add fields of a dataclass as keywords to the signature of a function with `**options`."""

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        shown = [
            inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=each.type)
            for each in fields(of)
            if each.name not in besides
        ]
        function.__signature__ = signature.replace(parameters=[*own, *shown])  # type: ignore[attr-defined]
        return function

    return decorate


def parse_size(text: str) -> tuple[int, int]:
    """Parse width and height in pixels, such as "96x64"."""
    match = re.fullmatch(r"(\d+)x(\d+)", text.lower())
    if not match:
        raise UserError(f"--size {text}: give width and height such as 96x64")
    return int(match[1]), int(match[2])


def parse_timesteps(text: str) -> tuple[float, ...]:
    """Parse timesteps such as "999,749.5,499"."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--timesteps {text}: give numbers such as 999,749,499,249") from None


def parse_interval(text: str) -> tuple[float, float]:
    """Parse "LOW:HIGH", where a missing bound is 0 or infinity."""
    low, colon, high = text.partition(":")
    try:
        if colon:
            return float(low or 0), float(high or "inf")
    except ValueError:
        pass
    raise UserError(f"--cfg-interval {text}: give two values of sigma / alpha such as 0.3:5")


def parse_dtype(text: str) -> torch.dtype:
    """Return the dtype of a name in `DTYPES`."""
    if text not in DTYPES:
        raise UserError(f"--dtype {text}: give {', '.join(DTYPES)}")
    import torch

    return getattr(torch, text)


def parse_prompts(arguments: Sequence[str]) -> list[str]:
    """Replace each `@file` by the file's lines.

    Raises:
        UserError: for a file without prompts.
    """
    prompts: list[str] = []
    for argument in arguments:
        if not argument.startswith("@"):
            prompts.append(argument)
            continue
        path = Path(argument[1:])
        found = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        if not found:
            raise UserError(f"{path} has no prompts: write one prompt per line")
        prompts += found
    return prompts


def read_image(path: Path) -> Image.Image:
    """Read an image file."""
    from ldm.data import images

    return images.read_image(path)


def read_map(path: Path) -> Image.Image:
    """Read a PNG of class numbers."""
    from ldm.data import images

    return images.decode_map(path, str(path))
