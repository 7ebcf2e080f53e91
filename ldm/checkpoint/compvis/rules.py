"""Rules that rename and reshape tensors between two formats, in both directions.

The rules follow from the configuration of a network. So all keys of both formats are known before a file is opened,
and a missing or unexpected key is an error that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Change = Callable[[Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class Transform:
    """How the tensors of a rule change in each direction; the two functions are inverse."""

    to_ours: Change
    to_theirs: Change


@dataclass(frozen=True)
class Rule:
    """The tensors `theirs` of a single file equal the tensors `ours` of a network, up to an invertible transform."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    transform: Transform


@dataclass(frozen=True)
class Filler:
    """A tensor of the file that our network does not use: it may be missing, and is written as a constant."""

    theirs: str
    shape: tuple[int, ...]
    value: float = 0.0


@dataclass(frozen=True)
class Rules:
    """The rules of one network; tensors in `ignored` may be in a file and are never written."""

    rules: tuple[Rule, ...]
    fillers: tuple[Filler, ...] = ()
    ignored: frozenset[str] = frozenset()

    def prefixed(self, prefix: str) -> Rules:
        """Return the same rules with a prefix of the names in the file."""
        return Rules(
            tuple(replace(rule, theirs=tuple(prefix + name for name in rule.theirs)) for rule in self.rules),
            tuple(replace(filler, theirs=prefix + filler.theirs) for filler in self.fillers),
            frozenset(prefix + name for name in self.ignored),
        )

    @property
    def known(self) -> set[str]:
        """All names that a file may have."""
        names = {name for rule in self.rules for name in rule.theirs}
        return names | {filler.theirs for filler in self.fillers} | self.ignored

    def to_ours(self, theirs: Tensors) -> Tensors:
        """Convert a file's tensors, already checked against `to_theirs`, to the network's."""
        ours: Tensors = {}
        for rule in self.rules:
            made = rule.transform.to_ours([theirs[name] for name in rule.theirs])
            ours |= zip(rule.ours, made, strict=True)
        return ours

    def to_theirs(self, ours: Tensors) -> Tensors:
        """Convert the network's tensors to a file's; on the meta device, this yields the expected shapes.

        Raises:
            KeyError: if the network lacks a tensor or has one without a rule, which is a bug in the rules.
        """
        theirs: Tensors = {}
        for rule in self.rules:
            made = rule.transform.to_theirs([ours[name] for name in rule.ours])
            theirs |= zip(rule.theirs, made, strict=True)
        if unused := ours.keys() - {name for rule in self.rules for name in rule.ours}:
            raise KeyError(f"no rule takes {sorted(unused)}")
        like = next(iter(ours.values()))
        return theirs | {f.theirs: like.new_full(f.shape, f.value) for f in self.fillers}


def _all(change: Callable[[Tensor], Tensor]) -> Change:
    return lambda tensors: [change(tensor) for tensor in tensors]


SAME = Transform(tuple, tuple)
TRANSPOSED = Transform(_all(Tensor.t), _all(Tensor.t))  # a parameter W of x @ W <-> the weight of a linear layer


def convolution(sides: int) -> Transform:
    """Transform the weight of a 1x1 convolution (C, C', 1, ...) with `sides` spatial axes to a linear layer (C, C')."""
    ones = (1,) * sides
    return Transform(_all(lambda w: w.flatten(1)), _all(lambda w: w.reshape(*w.shape, *ones)))


def stacked(parts: int) -> Transform:
    """Split a tensor into `parts` along its first axis."""
    return Transform(lambda tensors: tensors[0].chunk(parts), lambda tensors: [torch.cat(list(tensors))])


def interleaved(parts: int, heads: int) -> Transform:
    """Split a tensor into `parts` that are interleaved by head along its first axis."""

    def to_ours(tensors: Sequence[Tensor]) -> list[Tensor]:
        by_head = tensors[0].unflatten(0, (heads, parts, -1))  # (heads, parts, width of a head, ...)
        return [part.flatten(0, 1) for part in by_head.unbind(1)]

    def to_theirs(tensors: Sequence[Tensor]) -> list[Tensor]:
        by_head = [tensor.unflatten(0, (heads, -1)) for tensor in tensors]
        return [torch.stack(by_head, dim=1).flatten(0, 2)]

    return Transform(to_ours, to_theirs)


def chain(first: Transform, second: Transform) -> Transform:
    """Apply `first`, then `second`, in the direction to ours."""
    return Transform(
        lambda tensors: second.to_ours(first.to_ours(tensors)),
        lambda tensors: first.to_theirs(second.to_theirs(tensors)),
    )


def layer(theirs: str, ours: str, transform: Transform = SAME, bias: bool = True) -> Iterator[Rule]:
    """Yield rules of the weight of a layer, with a transform, and of its bias."""
    yield Rule((f"{theirs}.weight",), (f"{ours}.weight",), transform)
    if bias:
        yield Rule((f"{theirs}.bias",), (f"{ours}.bias",), SAME)


def layers(theirs: str, ours: str, names: dict[str, str]) -> Iterator[Rule]:
    """Yield rules of layers by their names within a block, theirs -> ours."""
    for their_name, our_name in names.items():
        yield from layer(f"{theirs}.{their_name}", f"{ours}.{our_name}")
