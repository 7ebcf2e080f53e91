"""Check that a trained network fits a configuration."""

from __future__ import annotations

from collections.abc import Collection

from ldm.config.section import Section
from ldm.errors import UserError

# Options that follow from the data, or concern how weights are loaded or trained.
GIVEN = {"sample_size", "vocab_size", "scaling_factor", "shift_factor", "statistics", "force_upcast"}
GIVEN |= {"source", "frozen"}


def differing(loaded: Section, asked: Section) -> list[str]:
    """Return the names of the options in which two configurations of a network differ."""
    wanted = dict(asked)
    return [name for name, value in loaded if name not in GIVEN and value != wanted.get(name)]


def check_same(loaded: Section, asked: Section, section: str, where: str, but: Collection[str] = ()) -> None:
    """Raise UserError if the network of a model differs from the configuration in other options than `but`."""
    names = [name for name in differing(loaded, asked) if name not in but]
    if names:
        found = "; ".join(f"{section}.{name} is {getattr(loaded, name)}, not {dict(asked).get(name)}" for name in names)
        raise UserError(f"the model {where} does not fit the configuration: {found}")
