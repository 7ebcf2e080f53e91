"""Read configurations by name or path, with overrides of single options."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ldm.config.root import Config
from ldm.config.section import parse
from ldm.errors import UserError
from ldm.storage.renames import current_config
from ldm.storage.text import read_text

SUFFIXES = (".yaml", ".yml")


def names() -> list[str]:
    """Return the names of the configurations that are installed with the package, such as `tiny` or `emoji`."""
    folder = _folder()
    ours = (path for path in folder.rglob("*.yaml") if path.parent.name != "accelerate")  # those are accelerate's
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in ours)


def load(source: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration by name or path and apply `a.b=c` overrides (values are YAML).

    Raises:
        UserError: if there is no such file, it is not YAML, or an option is unknown or has a wrong type.
    """
    path = find(source)
    tree = _read(path)
    for override in overrides:
        _override(tree, override)
    return parse(tree, Config, str(path))


def load_saved(path: Path) -> Config:
    """Read the configuration that a run has saved, which may have names from before a rename.

    Raises:
        UserError: if the file is damaged.
    """
    return parse(current_config(_read(path)), Config, str(path))


def find(source: str | Path) -> Path:
    """Return the path of a configuration given by name or path.

    Raises:
        UserError: if there is none; names the nearest file or name.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    name = str(source).removesuffix(".yaml").removesuffix(".yml")
    if name in names():
        return _folder() / f"{name}.yaml"
    near = [other for other in _others(path) if other.is_file()] or difflib.get_close_matches(name, names(), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UserError(f"no configuration {str(source)!r}: give a file or one of {', '.join(names())}{hint}")


def _others(path: Path) -> list[Path]:
    """The same path with the usual suffixes."""
    stem = path.with_suffix("") if path.suffix in SUFFIXES else path
    return [stem.with_name(stem.name + suffix) for suffix in SUFFIXES] if stem.name else []


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(read_text(path)) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold a mapping of sections, not a {type(tree).__name__}")
    return tree


def _folder() -> Path:
    import ldm.configs

    return Path(next(iter(ldm.configs.__path__)))


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: give name.of.option=value")
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"--set {override}: {parent} is an option, not a section")
        node = child
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"--set {override}: {value!r} is not a YAML value{_quotes_hint(value)}") from None
    if isinstance(node[last], str):  # YAML 1.1 reads 1e-4 as a word
        with contextlib.suppress(ValueError):
            node[last] = float(node[last])


def _quotes_hint(value: str) -> str:
    """Return what to do about a list or mapping that the shell has cut at a space."""
    opened = value.startswith(("[", "{")) and not value.endswith(("]", "}"))
    return ": put quotes around a list with spaces, as in --set 'a.b=[1, 2]'" if opened else ""
