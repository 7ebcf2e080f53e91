"""Options on the command line that derive from the fields of `Request`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import fields
from typing import Annotated, Any, TypeVar

import typer

from ldm.generation.option import Option
from ldm.generation.request import Request

F = TypeVar("F", bound=Callable[..., Any])
NOTHING = (None, "", (), False)  # defaults that --help need not show

Model = Annotated[str, typer.Option(help="A run, a diffusers directory, a Hub id or a built-in model.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...  [default: a GPU if there is one]")]


def options() -> dict[str, tuple[Option, Any]]:
    """Return the options of a request by the name of the field, each with the field's default."""
    found = {each.name: (each.metadata["option"], each.default) for each in fields(Request)}
    return {name: (option, default) for name, (option, default) in found.items() if option.type is not None}


def takes_request(names: Collection[str] | None = None) -> Callable[[F], F]:
    """Add the options of a request, all or some, to a command with `**options`; omitted options are None."""

    def decorate(command: F) -> F:
        signature = inspect.signature(command, eval_str=True)
        own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        derived = [_parameter(name, *found) for name, found in options().items() if names is None or name in names]
        command.__signature__ = signature.replace(parameters=[*own, *derived])  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in (*own, *derived)}
        return command

    return decorate


def _parameter(name: str, option: Option, default: Any) -> inspect.Parameter:
    shown = option.shown if option.shown is not None or default in NOTHING else str(default)
    text = f"{option.help}  [default: {shown}]" if shown else option.help
    flag = option.flag or f"--{name.replace('_', '-')}"
    about = typer.Option(flag, help=text, metavar=option.metavar, min=option.minimum, rich_help_panel=option.group)
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=None, annotation=Annotated[option.type | None, about])


def read_options(given: dict[str, Any]) -> dict[str, Any]:
    """Convert the values of given options to keywords of `Request`."""
    known = options()
    return {name: known[name][0].parse(value) for name, value in given.items() if value is not None}
