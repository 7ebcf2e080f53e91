"""Sections of the original configuration files: a `target`, read as a name, and the `params` that it gets."""

from __future__ import annotations

from typing import Any

from ldm.errors import UserError

Params = dict[str, Any]
REQUIRED = object()


class Target:
    """A `target` with its `params`, of which every one must be asked for: what is left over is refused by its name."""

    def __init__(self, tree: Any, where: str) -> None:
        if not isinstance(tree, dict) or not isinstance(tree.get("target"), str):
            raise UserError(f"{where} has no target: it is no configuration of latent-diffusion or of ldm")
        self.where = where
        self.kind = tree["target"].rpartition(".")[2]  # the modules moved; the names of the classes stayed
        self.params = Group(tree.get("params") or {}, f"{where}.params")

    def need(self, kinds: dict[str, Any]) -> Any:
        """What the table holds for this target; UserError where it is none of them."""
        if self.kind not in kinds:
            raise UserError(f"{self.where}.target is {self.kind}; ldm knows {', '.join(kinds)} here")
        return kinds[self.kind]


class Group:
    """Parameters by name, taken one by one."""

    def __init__(self, tree: Any, where: str) -> None:
        if not isinstance(tree, dict):
            raise UserError(f"{where} must be a mapping of names to values, not {tree!r}")
        self.where = where
        self.left = dict(tree)

    def take(self, name: str, default: Any = REQUIRED) -> Any:
        """A parameter, or its default; UserError where it has none."""
        if name not in self.left and default is REQUIRED:
            raise UserError(f"{self.where} has no {name}: it is not a whole configuration")
        return self.left.pop(name, default)

    def number(self, name: str, default: Any = REQUIRED) -> int:
        """A whole number."""
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise refused(f"{self.where}.{name}", value)
        return value

    def numbers(self, name: str, default: Any = REQUIRED) -> list[int]:
        """A list of whole numbers."""
        values = self.take(name, default)
        if not isinstance(values, list | tuple) or not all(type(value) is int for value in values):
            raise refused(f"{self.where}.{name}", values)
        return list(values)

    def target(self, name: str) -> Target:
        """A section with a target of its own."""
        return Target(self.take(name), f"{self.where}.{name}")

    def group(self, name: str) -> Group:
        """A section without a target."""
        return Group(self.take(name), f"{self.where}.{name}")

    def choose(self, name: str, table: dict[Any, Any], default: Any = REQUIRED) -> Any:
        """What a table holds for the parameter's value; UserError for another value."""
        value = self.take(name, default)
        if isinstance(value, list | dict) or value not in table:
            raise refused(f"{self.where}.{name}", value)
        return table[value]

    def expect(self, **values: Any) -> None:
        """Raise UserError where one of these parameters is given and has another value."""
        for name, value in values.items():
            found = self.left.pop(name, value)
            if found != value:
                raise refused(f"{self.where}.{name}", found)

    def skip(self, *names: str) -> None:
        """Pass over parameters that say nothing about what a trained network computes."""
        for name in names:
            self.left.pop(name, None)

    def finish(self) -> None:
        """Raise UserError for what nothing has asked for."""
        if self.left:
            name, value = next(iter(self.left.items()))
            raise UserError(f"{self.where}.{name} is {value!r}: ldm does not know this parameter")


def refused(name: str, value: Any) -> UserError:
    """The error for a parameter whose value we cannot follow."""
    return UserError(f"{name} is {value!r}, which ldm cannot do")


def inexpressible(option: str, value: Any, needed: Any) -> UserError:
    """The error for an option of ours that the original has no parameter for."""
    return UserError(f"{option} is {value}, which CompVis files cannot express: it must be {needed}")


def expect_options(section: str, config: Any, needed: dict[str, Any]) -> None:
    """Raise UserError for an option of ours that is not what the original always has."""
    for name, value in needed.items():
        if getattr(config, name) != value:
            raise inexpressible(f"{section}.{name}", getattr(config, name), value)


def multiples(section: str, widths: tuple[int, ...]) -> list[int]:
    """Widths of the levels in terms of the first; UserError where one is no multiple."""
    if any(width % widths[0] for width in widths):
        raise inexpressible(f"{section}.block_out_channels", list(widths), "whole multiples of the first width")
    return [width // widths[0] for width in widths]


def widths_of(base: int, factors: list[int], where: str) -> tuple[int, ...]:
    """The inverse of `multiples`; ours begin with the base width, so that the first factor must be 1."""
    if not factors or factors[0] != 1:
        raise refused(where, factors)
    return tuple(base * factor for factor in factors)
