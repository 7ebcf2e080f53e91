"""Whether a trained network is the one that a configuration describes."""

from __future__ import annotations

from collections.abc import Collection

from ldm.config.section import Section
from ldm.errors import UserError

# They follow from the data, or tell how to load or to train the weights.
GIVEN = {"sample_size", "vocab_size", "scaling_factor", "shift_factor", "statistics", "force_upcast"}
GIVEN |= {"source", "frozen"}


def differing(loaded: Section, asked: Section) -> list[str]:
    """Names of the options in which the network of `loaded` is another than that of `asked`."""
    wanted = dict(asked)
    return [name for name, value in loaded if name not in GIVEN and value != wanted.get(name)]


def check_same(loaded: Section, asked: Section, section: str, where: str, but: Collection[str] = ()) -> None:
    """UserError where a configuration asks for another network than that of a model, `but` in some options."""
    names = [name for name in differing(loaded, asked) if name not in but]
    if names:
        found = "; ".join(f"{section}.{name} is {getattr(loaded, name)}, not {dict(asked).get(name)}" for name in names)
        raise UserError(f"the model {where} is not what the configuration describes: {found}")
