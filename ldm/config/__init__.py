"""Configuration: one YAML file read into nested, frozen, typed sections.

A file contains only options that differ from the defaults. An unknown key is an error that names its path and the
nearest known key. Sections are defined next to the components they configure; `root.Config` combines them when it is
first used, so that components can import `ldm.config.section`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm.config.files import find, load, load_saved, names
    from ldm.config.root import Config
    from ldm.config.section import Section, dump, parse

_modules = {"Config": "root", "Section": "section", "dump": "section", "parse": "section"}
__all__ = ["Config", "Section", "dump", "find", "load", "load_saved", "names", "parse"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ldm.config' has no attribute {name!r}")
    return getattr(import_module(f"ldm.config.{_modules.get(name, 'files')}"), name)
