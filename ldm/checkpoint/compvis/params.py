"""Sections of the original configuration files: the class name `target` and its arguments `params`."""

from __future__ import annotations

from typing import Any

from ldm.errors import UserError

Params = dict[str, Any]
REQUIRED = object()


class Target:
    """A `target` with its `params`; `Group.finish` raises an error for a parameter that was not read."""

    def __init__(self, tree: Any, where: str) -> None:
        if not isinstance(tree, dict) or not isinstance(tree.get("target"), str):
            raise UserError(f"{where} has no target: it is not a configuration of latent-diffusion or ldm")
        self.where = where
        self.kind = tree["target"].rpartition(".")[2]  # modules have moved, class names have not
        self.params = Group(tree.get("params") or {}, f"{where}.params")

    def need(self, kinds: dict[str, Any]) -> Any:
        """Look up the target in a table.

        Raises:
            UserError: if it is not there.
        """
        if self.kind not in kinds:
            raise UserError(f"{self.where}.target is {self.kind}; ldm supports {', '.join(kinds)} here")
        return kinds[self.kind]


class Group:
    """Parameters by name, which are read one by one."""

    def __init__(self, tree: Any, where: str) -> None:
        if not isinstance(tree, dict):
            raise UserError(f"{where} must be a mapping of names to values, not {tree!r}")
        self.where = where
        self.left = dict(tree)

    def take(self, name: str, default: Any = REQUIRED) -> Any:
        """Read a parameter.

        Raises:
            UserError: if it is missing and has no default.
        """
        if name not in self.left and default is REQUIRED:
            raise UserError(f"{self.where} has no {name}: the configuration is incomplete")
        return self.left.pop(name, default)

    def number(self, name: str, default: Any = REQUIRED) -> int:
        """Read a parameter that must be an integer."""
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise refused(f"{self.where}.{name}", value)
        return value

    def numbers(self, name: str, default: Any = REQUIRED) -> list[int]:
        """Read a list of integers."""
        values = self.take(name, default)
        if not isinstance(values, list | tuple) or not all(type(value) is int for value in values):
            raise refused(f"{self.where}.{name}", values)
        return list(values)

    def target(self, name: str) -> Target:
        """Read a section with a target."""
        return Target(self.take(name), f"{self.where}.{name}")

    def group(self, name: str) -> Group:
        """Return a section without a target."""
        return Group(self.take(name), f"{self.where}.{name}")

    def choose(self, name: str, table: dict[Any, Any], default: Any = REQUIRED) -> Any:
        """Look up the value of a parameter in a table.

        Raises:
            UserError: if it is not there.
        """
        value = self.take(name, default)
        if isinstance(value, list | dict) or value not in table:
            raise refused(f"{self.where}.{name}", value)
        return table[value]

    def expect(self, **values: Any) -> None:
        """Raise UserError for a parameter that is given with another value."""
        for name, value in values.items():
            found = self.left.pop(name, value)
            if found != value:
                raise refused(f"{self.where}.{name}", found)

    def skip(self, *names: str) -> None:
        """Ignore parameters that do not change what a trained network computes."""
        for name in names:
            self.left.pop(name, None)

    def finish(self) -> None:
        """Raise an error for a parameter that was not read."""
        if self.left:
            name, value = next(iter(self.left.items()))
            raise UserError(f"{self.where}.{name} is {value!r}: ldm does not support this parameter")


def refused(name: str, value: Any) -> UserError:
    """Return the error for an unsupported value of a parameter."""
    return UserError(f"{name} is {value!r}, which ldm does not support")


def inexpressible(option: str, value: Any, needed: Any) -> UserError:
    """Return the error for an option without a parameter in the original."""
    return UserError(f"{option} is {value}, which CompVis files cannot express: set it to {needed}")


def expect_options(section: str, config: Any, needed: dict[str, Any]) -> None:
    """Raise UserError for an option that differs from the fixed value of the original."""
    for name, value in needed.items():
        if getattr(config, name) != value:
            raise inexpressible(f"{section}.{name}", getattr(config, name), value)


def multiples(section: str, widths: tuple[int, ...]) -> list[int]:
    """Divide the widths of levels by the first.

    Raises:
        UserError: if one is not a multiple.
    """
    if any(width % widths[0] for width in widths):
        raise inexpressible(f"{section}.block_out_channels", list(widths), "whole multiples of the first width")
    return [width // widths[0] for width in widths]


def widths_of(base: int, factors: list[int], where: str) -> tuple[int, ...]:
    """Invert `multiples`; the first factor must be 1."""
    if not factors or factors[0] != 1:
        raise refused(where, factors)
    return tuple(base * factor for factor in factors)
