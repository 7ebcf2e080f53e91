"""What every section of a configuration is, and how a tree of plain values becomes one."""

from __future__ import annotations

import difflib
import typing
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ldm.errors import UserError

# What bounds the networks that a foreign file can ask for, so that a damaged number is an error and no full memory.
Width = Annotated[int, Field(ge=1, le=2**20)]  # channels, tokens, pixels of a side
Depth = Annotated[int, Field(ge=1, le=200)]  # layers
Count = Annotated[int, Field(ge=0, le=200)]  # layers, of which there may be none


class Section(BaseModel):
    """A frozen group of options that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


S = typing.TypeVar("S", bound=Section)


def parse(tree: dict[str, Any], section: type[S], where: str) -> S:
    """Validate a tree of plain values; every problem becomes one line that names the option's path."""
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error, section)}") from None


def dump(config: Section) -> str:
    """The configuration as YAML that `load` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _explain(error: ValidationError, section: type[Section]) -> str:
    lines = []
    for problem in error.errors():
        names, known = _follow(section, problem["loc"])
        path, message = ".".join(names), problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(names[-1], known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
            lines.append(f"unknown option {path!r}; {hint}")
        elif problem["type"] == "union_tag_invalid":
            lines.append(f"{path}.kind: Input should be one of {problem['ctx']['expected_tags']}")
        else:
            lines.append(f"{path}: {message}" if path else message)
    return "; ".join(lines)


def _follow(section: type[Section], location: typing.Sequence[int | str]) -> tuple[list[str], list[str]]:
    """The options on the way to a problem, and the names of those beside the last one.

    In a location the kind of a section of several kinds comes after its name; in a path it does not.
    """
    path: list[str] = []
    beside: list[str] = []
    kinds: list[type[Section]] = [section]
    for part in location:
        if len(kinds) > 1:
            kinds = [kind for kind in kinds if kind.model_fields["kind"].default == part]
            continue
        fields = {name: field for kind in kinds for name, field in kind.model_fields.items()}
        path, beside = [*path, str(part)], list(fields)
        kinds = _sections(fields[str(part)].annotation) if part in fields else []
    return path, beside


def _sections(annotation: Any) -> list[type[Section]]:
    """The sections that an option may hold, of a plain annotation or a union."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in typing.get_args(annotation) for section in _sections(part)]


def check_divisible(name: str, value: int, by_name: str, by: int) -> None:
    """Raise ValueError, which names both options, when one does not divide the other."""
    if by < 1 or value < 1 or value % by:
        raise ValueError(f"{name} {value} is not divisible by {by_name} {by}")
