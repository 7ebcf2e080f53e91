"""Pass local files to `datasets` by name, which takes paths for patterns and chains of file systems."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.data.cache import default_cache

if TYPE_CHECKING:
    from datasets.data_files import DataFilesDict

CHAIN = "::"  # fsspec splits names here, also those of local files


def local_files(paths: Sequence[str]) -> DataFilesDict:
    """Return the argument `data_files` of `datasets.load_dataset` for exactly these files."""
    from datasets.data_files import DataFilesDict, DataFilesList

    found = [os.path.abspath(path) for path in paths]
    versions = [(str(os.path.getmtime(path)),) for path in found]  # as `datasets` itself identifies a local file
    return DataFilesDict({"train": DataFilesList([_without_chain(path) for path in found], versions)})


def _without_chain(path: str) -> str:
    """Return a path that fsspec does not split: if necessary, a link in the cache."""
    if CHAIN not in path:
        return path
    folder = default_cache() / "links"
    link = folder / (hashlib.blake2b(path.encode(), digest_size=12).hexdigest() + Path(path).suffix)
    folder.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(path)
    return str(link)
