"""Whether a file holds the networks that a configuration describes, name by name and shape by shape."""

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
from ldm.config.files import load, names
from ldm.devices import on_meta
from ldm.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]
PUBLISHED = "published/"


@dataclass(frozen=True)
class Layout:
    """What a file with certain names holds, and the rules of each of its networks."""

    contents: Contents
    rules: dict[str, Rules]

    @classmethod
    def of(cls, contents: Contents, names: Iterable[str]) -> Layout:
        """The layout of a file with such names."""
        names = list(names)
        within = contents.within(names)
        return cls(within, within.rules(within.prefixes_in(names)))

    @property
    def averaged(self) -> dict[str, str]:
        """The names of weights of which an average may be kept -> those of the average, which have no dots."""
        network = next((name for name in ("unet", "autoencoder") if name in self.rules), None)
        if network is None:
            return {}
        required = [name for rule in self.rules[network].rules for name in rule.theirs]
        return {name: EMA + name.removeprefix("model.").replace(".", "") for name in required}

    @property
    def copies(self) -> dict[str, str]:
        """The names of a condition stage that is the first stage itself -> those of the first stage."""
        if self.contents.spatial is None or self.contents.spatial.kind != "inpainting":
            return {}
        known = self.rules["autoencoder"].known
        return {CONDITION + name.removeprefix(FIRST_STAGE): name for name in known}

    def problem(self, shapes: Shapes) -> str | None:
        """What keeps a file with such tensors from being read; None: nothing."""
        if not self.rules:
            return "it holds none of the networks that are described"
        expected = self.expected()
        known = {*expected, *BUFFERS, *EMA_COUNTERS, *self.averaged.values(), *self.copies}
        known |= {name for rules in self.rules.values() for name in rules.known}
        if missing := expected.keys() - shapes.keys():
            return f"it lacks {some(missing)}"
        unknown = {name for name in shapes.keys() - known if not name.startswith(LOSSES)}
        if unknown:
            return f"it holds {some(unknown)}, which its configuration does not ask for"
        for name, shape in expected.items():
            if tuple(shapes[name]) != shape:
                return f"{name} has shape {tuple(shapes[name])}, its configuration asks for {shape}"
        return None

    def expected(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors that must be there, by name."""
        found: dict[str, tuple[int, ...]] = {}
        for name, rules in self.rules.items():
            with on_meta():
                network = self.contents.make(name)
            theirs = rules.to_theirs(network.state_dict())
            fillers = {filler.theirs for filler in rules.fillers}
            found |= {key: tuple(tensor.shape) for key, tensor in theirs.items() if key not in fillers}
        return found


def recognise(shapes: Shapes, where: str) -> Contents:
    """What the one published model with such tensors holds; UserError when there is none, or more than one.

    For one network alone, the configuration of just that network goes before those of models that have it as a part.
    """
    found: dict[str, Contents] = {}
    for name, contents in _published().items():
        layout = Layout.of(contents, shapes)
        if _has_names(layout, shapes) and layout.problem(shapes) is None:
            found[name] = layout.contents
    if not found:
        raise UserError(f"{where} is of no published model: give its configuration with --config")
    alone = [contents for name, contents in found.items() if contents == _published()[name]]
    first, *others = alone or found.values()
    if any(other != first for other in others):
        raise UserError(
            f"{where} could be of {', '.join(found)}, which have the same shapes: say which with --config, such as "
            f"--config {next(iter(found))}"
        )
    return first


@cache
def _published() -> dict[str, Contents]:
    return {name: Contents.of_config(load(name)) for name in names() if name.startswith(PUBLISHED)}


def _has_names(layout: Layout, shapes: Shapes) -> bool:
    """Whether no name is missing, which is known before a network is made."""
    return all(name in shapes for rules in layout.rules.values() for rule in rules.rules for name in rule.theirs)


def some(found: Iterable[str]) -> str:
    """The first of several names, and how many more there are."""
    first, *others = sorted(found)
    return f"{first} and {len(others)} more" if others else first


def shapes_of(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """Shapes by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
