"""What every section of a configuration is, and how a tree of plain values becomes one."""

from __future__ import annotations

import difflib
import typing
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ldm.errors import UserError


class Section(BaseModel):
    """A frozen group of options that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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
        path = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _fields(section, problem["loc"][:-1])
            near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
            lines.append(f"unknown option {path!r}; {hint}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{path}: {message}" if path else message)
    return "; ".join(lines)


def _fields(section: type[Section], path: typing.Sequence[int | str]) -> list[str]:
    for part in path:
        section = section.model_fields[str(part)].annotation  # type: ignore[assignment]
    return list(section.model_fields)
