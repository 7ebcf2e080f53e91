"""Find the files below a local folder of data, through links to folders."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Walk:
    """The files below a folder, and what happened to folders on the way; all names are relative to the folder."""

    files: list[str] = field(default_factory=list)
    followed: list[str] = field(default_factory=list)  # links to folders whose files are in `files`
    repeated: list[str] = field(default_factory=list)  # links to folders that were read already, or that form loops
    closed: list[str] = field(default_factory=list)  # folders that may not be read

    def notes(self) -> list[str]:
        """Return phrases about links and closed folders."""
        read_already = "to a folder that is read already", "to folders that are read already"
        said = (
            ("followed", "link to a folder", "links to folders", self.followed),
            ("ignored", f"link {read_already[0]}", f"links {read_already[1]}", self.repeated),
            ("cannot read", "folder", "folders", self.closed),
        )
        return [f"{verb} {counted(one, many, names)}" for verb, one, many, names in said if names]


def walk(root: Path) -> Walk:
    """List all files below a folder; each folder is read once, however many links lead to it."""
    found = Walk()
    above = {_identity(folder) for folder in root.resolve().parents}
    seen: set[tuple[int, int]] = set()
    links = _read_folders(root, "", found, seen)
    while links:  # after the folders themselves, so that these keep their own names
        name = links.pop(0)
        identity = _identity(root / name)
        if identity in seen or identity in above:
            found.repeated.append(name)
            continue
        found.followed.append(name)
        links += _read_folders(root, name, found, seen)
    return found


def counted(one: str, many: str, names: list[str], shown: int = 3) -> str:
    """Return a number of things and the first of their names, such as "2 links to folders (a, b)"."""
    some = ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")
    return f"{len(names):,} {one if len(names) == 1 else many} ({some})"


def _read_folders(root: Path, top: str, found: Walk, seen: set[tuple[int, int]]) -> list[str]:
    """Add the files of the folder `top` and those below it; return the links to folders among them."""
    links, waiting = [], [top]
    while waiting:
        folder = waiting.pop()
        try:
            entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
        except PermissionError:
            found.closed.append(folder)
            continue
        seen.add(_identity(root / folder))
        for entry in entries:
            name = os.path.join(folder, entry.name)
            if not os.path.isdir(entry):
                found.files.append(name)
            elif entry.is_symlink():
                links.append(name)
            else:
                waiting.append(name)
    return links


def _identity(folder: Path) -> tuple[int, int]:
    """Identify a folder, whatever links lead to it."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino
