"""Sections of a configuration: parsing, errors, and fields that components contribute."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError, create_model
from pydantic_core import PydanticCustomError, core_schema

from ldm.errors import UserError
from ldm.storage.renames import old_option, old_value

# Bounds on the networks that a file can ask for, so that a damaged number is an error and does not fill the memory.
Width = Annotated[int, Field(ge=1, le=2**20)]  # channels, tokens, pixels of a side
Depth = Annotated[int, Field(ge=1, le=200)]  # layers
Count = Annotated[int, Field(ge=0, le=200)]  # layers, possibly none


# Names of options in other trainers, where letters do not lead to ours.
OTHER_NAMES = {
    "resolution": ("size",),
    "image_size": ("size",),
    "grad_clip": ("gradient_clip",),
    "max_grad_norm": ("gradient_clip",),
    "num_steps": ("max_steps",),
    "iterations": ("max_steps",),
    "epochs": ("max_steps",),
    "lr_scheduler": ("decay",),
    "lr_warmup_steps": ("warmup_steps",),
    "num_workers": ("workers",),
}


class Section(BaseModel):
    """A frozen group of options; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


S = typing.TypeVar("S", bound=Section)


class ByKind:
    """Annotation of a field whose `kind` selects a component of a registry and with it the section's class.

    Components have the attribute `section`, a subclass of `Section` with a field `kind`. Use as
    `Annotated[SerializeAsAny[Base], ByKind(REGISTRY, "default kind")]`. With `ignore_defaults`, options of other kinds
    are accepted at their default values, so that `kind` can be changed in a complete configuration.
    """

    def __init__(
        self, components: Mapping[str, Any], default: str | None = None, ignore_defaults: bool = False
    ) -> None:
        self.components, self.default, self.ignore_defaults = components, default, ignore_defaults

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self.parse, handler(source))

    def parse(self, value: Any) -> Any:
        """Validate a tree by the section of its kind; errors keep the path of the option."""
        if not isinstance(value, dict):
            return value
        section = self.section_of(value)
        others = [name for name in value if name not in section.model_fields] if self.ignore_defaults else []
        ignored = {name for name in others if self._is_default(name, value[name], str(value.get("kind", self.default)))}
        return section.model_validate({name: each for name, each in value.items() if name not in ignored})

    def _is_default(self, name: str, value: Any, kind: str) -> bool:
        """Return whether an option of other kinds has its default; False for an unknown option."""
        fields = {each: component.section.model_fields for each, component in self.components.items()}
        owners = {each: options[name].default for each, options in fields.items() if name in options}
        if owners and value not in owners.values():
            raise PydanticCustomError(
                "other_kind",
                "{name} is an option of kind {owners}, not of {kind}",
                {"name": name, "owners": ", ".join(owners), "kind": kind},
            )
        return bool(owners)

    def section_of(self, tree: Mapping[str, Any]) -> type[Section]:
        """Return the section's class for a tree of plain values."""
        kind = _known(tree.get("kind", self.default), self.components)
        return self.components[kind].section


class NameOf:
    """Annotation of a string that must be a name in a registry."""

    def __init__(self, components: Mapping[str, Any]) -> None:
        self.components = components

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(lambda name: _known(name, self.components), handler(source))


def _known(name: Any, components: Mapping[str, Any]) -> str:
    """Return a name of a component; the error names the nearest one and all."""
    if name not in components:
        near = difflib.get_close_matches(str(name), components, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        kinds = ", ".join(repr(each) for each in components)
        details = {"hint": hint, "kinds": kinds}
        raise PydanticCustomError("unknown_kind", "{hint}Input should be one of {kinds}", details)
    return str(name)


def extended(base: type[S], fields: Mapping[str, tuple[Any, Any]]) -> type[S]:
    """Return a subclass of a section with further fields: name -> (annotation, default)."""
    options: dict[str, Any] = {"__base__": base, "__module__": base.__module__, **fields}
    section = typing.cast(type[S], create_model(base.__name__, **options))
    section.__doc__ = base.__doc__
    return section


def component_fields(components: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return a field for each component: its name, its `section`, and a section of defaults."""
    return {name: (component.section, component.section()) for name, component in components.items()}


def parse(tree: dict[str, Any], section: type[S], where: str) -> S:
    """Validate a tree of plain values.

    Raises:
        UserError: one line for all problems, each with the path of its option.
    """
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error, section, tree)}") from None


def dump(config: Section) -> str:
    """Return the configuration as YAML that `load` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _explain(error: ValidationError, section: type[Section], tree: Any) -> str:
    lines = []
    for problem in error.errors():
        path, message = ".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            *parents, name = problem["loc"]
            if (new := old_option(path)) is not None:
                lines.append(f"option {path!r} is now named {new!r}")
                continue
            known = _options_at(section, parents, tree)
            near = nearest(str(name), known)
            hint = f"did you mean {near!r}?" if near else f"known here: {', '.join(known)}"
            lines.append(f"unknown option {path!r}; {hint}")
        elif problem["type"] == "unknown_kind":
            renamed = old_value(path, "kind", problem["input"])
            kind = ".kind" if isinstance(problem["input"], dict) else ""
            lines.append(f"{path}{kind}: {message}" + (f"; it is now named {renamed!r}" if renamed else ""))
        else:
            message += _list_hint(problem)
            lines.append(f"{path}: {message}" if path else message)
    return "; ".join(lines)


def nearest(name: str, known: Sequence[str]) -> str | None:
    """Return the option that a wrong name means: similar letters, its initials (lr, bs, wd), or a usual other name."""
    near = difflib.get_close_matches(name, known, n=1)
    near += [each for each in known if "_" in each and name == "".join(word[0] for word in each.split("_"))]
    near += [each for each in known if each in OTHER_NAMES.get(name, ())]
    return near[0] if near else None


def _list_hint(problem: Any) -> str:
    """Return how to write a list, for an option that needs one and has another value."""
    value = problem["input"]
    if problem["type"] not in ("tuple_type", "list_type") or not isinstance(value, str | int | float):
        return ""
    return f", not {value!r}: write a list in brackets, on the command line in quotes: '[{value}]'"


def _options_at(section: type[Section], path: Sequence[int | str], tree: Any) -> list[str]:
    """Return names of the options in the section at a path."""
    for part in path:
        tree = tree[part]
        field = section.model_fields[str(part)]
        kinds = next((each for each in _annotations(field) if isinstance(each, ByKind)), None)
        section = kinds.section_of(tree) if kinds else next(filter(_is_section, _annotations(field)))
    return list(section.model_fields)


def _annotations(field: Any) -> list[Any]:
    """Return a field's annotation, its parts and their metadata."""
    found, waiting = [], [field.annotation, *field.metadata]
    while waiting:
        found.append(waiting.pop())
        waiting += [*typing.get_args(found[-1]), *getattr(found[-1], "__metadata__", ())]
    return found


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def check_divisible(name: str, value: int, by_name: str, by: int) -> None:
    """Raise a ValueError that names both options unless `by` divides `value`."""
    if by < 1 or value < 1 or value % by:
        raise ValueError(f"{name} {value} is not divisible by {by_name} {by}")
