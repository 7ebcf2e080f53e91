"""Check the names and shapes of a file's tensors against a configuration, and recognise published models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from ldm.checkpoint.compvis.contents import (
    BUFFERS,
    CONDITION,
    EMA,
    EMA_COUNTERS,
    FIRST_STAGE,
    LOSSES,
    Contents,
)
from ldm.checkpoint.compvis.rules import Rules, Tensors
from ldm.checkpoint.families import unsupported_file
from ldm.config.files import load, names
from ldm.devices import on_meta
from ldm.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]
PUBLISHED = "published/"


@dataclass(frozen=True)
class Layout:
    """The contents of a file with certain names, and the rules of each network."""

    contents: Contents
    rules: dict[str, Rules]

    @classmethod
    def of(cls, contents: Contents, names: Iterable[str]) -> Layout:
        """Return the layout of a file with these names."""
        names = list(names)
        within = contents.within(names)
        return cls(within, within.rules(within.prefixes_in(names)))

    @property
    def averaged(self) -> dict[str, str]:
        """Names of weights that may have an EMA -> names of the EMA, which have no dots."""
        network = next((name for name in ("unet", "autoencoder") if name in self.rules), None)
        if network is None:
            return {}
        required = [name for rule in self.rules[network].rules for name in rule.theirs]
        return {name: EMA + name.removeprefix("model.").replace(".", "") for name in required}

    @property
    def copies(self) -> dict[str, str]:
        """Names of a condition stage that is a copy of the first stage -> names of the first stage."""
        spatial = self.contents.spatial
        if self.contents.text is not None or spatial is None or spatial.kind != "inpainting":
            return {}
        known = self.rules["autoencoder"].known
        return {CONDITION + name.removeprefix(FIRST_STAGE): name for name in known}

    def problem(self, shapes: Shapes) -> str | None:
        """Return why a file with these tensors cannot be read; None if it can."""
        if not self.rules:
            return "it holds none of the networks of its configuration"
        expected = self.expected()
        known = {*expected, *BUFFERS, *EMA_COUNTERS, *self.averaged.values(), *self.copies}
        known |= {name for rules in self.rules.values() for name in rules.known}
        if missing := expected.keys() - shapes.keys():
            return f"it lacks {some(missing)}"
        unknown = {name for name in shapes.keys() - known if not name.startswith(LOSSES)}
        if unknown:
            return f"it holds {some(unknown)}, which its configuration does not have"
        for name, shape in expected.items():
            if tuple(shapes[name]) != shape:
                return f"{name} has shape {tuple(shapes[name])}, its configuration needs {shape}"
        return None

    def expected(self) -> dict[str, tuple[int, ...]]:
        """Return shapes of the required tensors by name."""
        found: dict[str, tuple[int, ...]] = {}
        for name, rules in self.rules.items():
            with on_meta():
                network = self.contents.make(name)
            theirs = rules.to_theirs(network.state_dict())
            fillers = {filler.theirs for filler in rules.fillers}
            found |= {key: tuple(tensor.shape) for key, tensor in theirs.items() if key not in fillers}
        return found


def recognise(shapes: Shapes, where: str) -> Contents:
    """Return the contents of the published model with these tensors.

    For a single network, the configuration of just that network takes precedence over models that contain it.

    Raises:
        UserError: if there is no such model, or more than one.
    """
    found: dict[str, Contents] = {}
    for name, contents in _published().items():
        layout = Layout.of(contents, shapes)
        if _has_names(layout, shapes) and layout.problem(shapes) is None:
            found[name] = layout.contents
    if not found:
        unknown = UserError(f"{where} matches no published model: give its configuration with --config")
        raise unsupported_file(where, shapes) or unknown
    alone = [contents for name, contents in found.items() if contents == _published()[name]]
    first, *others = alone or found.values()
    if any(other != first for other in others):
        raise UserError(
            f"{where} matches {', '.join(found)}, which have the same shapes: choose one with --config, such as "
            f"--config {next(iter(found))}"
        )
    return first


@cache
def _published() -> dict[str, Contents]:
    return {name: Contents.of_config(load(name)) for name in names() if name.startswith(PUBLISHED)}


def _has_names(layout: Layout, shapes: Shapes) -> bool:
    """Return whether all required names are there; this is checked before a network is built."""
    return all(name in shapes for rules in layout.rules.values() for rule in rules.rules for name in rule.theirs)


def some(found: Iterable[str]) -> str:
    """Format several names: the first, and the number of others."""
    first, *others = sorted(found)
    return f"{first} and {len(others)} more" if others else first


def shapes_of(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
