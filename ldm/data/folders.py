"""Folders of captioned images: with a table of metadata, with a text beside each image, or bare."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from PIL import Image

from ldm.data import captions as captions_of
from ldm.data.broken import UnreadableError
from ldm.data.classes import FOLDER, Labels, choose_field, of_folders
from ldm.data.files import is_remote, list_files, open_file, read_if_present
from ldm.data.images import IMAGE_SUFFIXES, decode, decode_map, header_size
from ldm.data.selection import MAP_SUFFIX, select_images
from ldm.data.sources import IndexedSource, Split
from ldm.data.tables import bad_row, load_table
from ldm.data.walk import walk
from ldm.errors import UserError, UserNote

if TYPE_CHECKING:
    from ldm.config.data import DataConfig, Size

MAP_FIELDS = ("map", "map_file_name")  # of metadata; the second is the name in Hugging Face's image folders
METADATA: dict[str, tuple[str, dict[str, Any]]] = {
    "metadata.jsonl": ("json", {}),
    "metadata.csv": ("csv", {"keep_default_na": False, "skipinitialspace": True}),
    "metadata.json": ("json", {}),
}
HELD_OUT = ("test", "validation", "valid", "val", "dev", "eval")  # folders that are not trained on beside `train`


class FolderSource(IndexedSource):
    """Image files below a folder, with captions in a table's rows or in files beside them."""

    accepts = "a folder of images"
    has_maps = True

    def __init__(
        self,
        folder: str,
        names: Sequence[str],
        rows: Any | None = None,
        caption_fields: tuple[str, ...] = (),
        labels: Labels | None = None,
        maps: Sequence[str | None] | None = None,
        files: Mapping[str, int | None] | None = None,
    ) -> None:
        """Take `files`, the sizes of a remote folder's files by name."""
        self.name, self.names, self.maps, self.labels = folder, names, maps, labels
        self._rows, self._fields, self._files = rows, caption_fields, files or {}

    @classmethod
    def matches(cls, data: str) -> bool:
        """Return whether `data` is a local folder or a URL."""
        return is_remote(data) or Path(data).is_dir()

    @classmethod
    def open(cls, data: str, config: DataConfig, split: Split) -> FolderSource:
        """Open a folder with `metadata.jsonl` or `metadata.csv`, with `image.txt` beside `image.png`, or bare."""
        walked = None if is_remote(data) else walk(Path(data))
        files = list_files(data) if walked is None else dict.fromkeys(walked.files)
        tables = metadata_files(files)
        if tables:
            return cls._with_metadata(data, tables, config, files)
        names, notes = select_images(files, None if walked is None else Path(data))
        notes += [] if walked is None else walked.notes()
        field = config.class_field
        if not names:
            raise UserError("; ".join([f"no images in {data}: looked for {' '.join(IMAGE_SUFFIXES)}", *notes]))
        if notes:
            warnings.warn(f"data {data}: {'; '.join(notes)}", UserNote, stacklevel=2)
        if field not in (None, FOLDER):
            raise UserError(f"data.class_field {field} needs {data}/metadata.jsonl or .csv, where it is a column")
        labels = of_folders(names, required=field is not None)
        return cls(data, names, caption_fields=config.caption_fields, labels=labels, files=files)

    @classmethod
    def _with_metadata(
        cls, data: str, tables: Sequence[str], config: DataConfig, files: Mapping[str, int | None]
    ) -> FolderSource:
        path = f"{data.rstrip('/')}/{tables[0]}"
        table, names = _load_metadata(data, tables)
        columns = table.features
        fields = captions_of.choose_fields(columns, config.caption_fields, path)
        rows = table.select_columns(captions_of.columns_of(columns, fields))
        if config.class_field == FOLDER:
            labels = of_folders(names)
        else:
            column = choose_field(columns, config.class_field, path)
            labels = None if column is None else Labels(list(table[column]))
        field = next((field for field in MAP_FIELDS if field in columns), None)
        return cls(data, names, rows, fields, labels, None if field is None else table[field], files)

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> Image.Image:
        name = self.name_of(index)
        return decode(self._content(name), name)

    def map(self, index: int) -> Image.Image:
        """Decode the map that the row names, or `image.map.png`."""
        named = None if self.maps is None else self.maps[index]
        name = named or str(PurePosixPath(self.name_of(index)).with_suffix(MAP_SUFFIX))
        return decode_map(self._content(name), name)

    def shape(self, index: int) -> Size:
        name = self.name_of(index)
        return header_size(self._content(name), name)

    def captions(self, index: int) -> list[str]:
        name = self.name_of(index)
        try:
            if self._rows is not None:
                return captions_of.of_record(self._rows[index] if self._fields else {}, self._fields) or [""]
            text, record = self._beside(name, captions_of.TEXT_SUFFIXES), self._beside(name, (".json",))
            return captions_of.of_contents(text, record, self._fields)
        except (OSError, ValueError) as error:
            raise UnreadableError(name, error) from error

    def name_of(self, index: int) -> str:
        """Return the file's name below the folder."""
        return str(self.names[index])

    def key(self, index: int) -> str:
        """Return the file's name below the folder."""
        return self.name_of(index)

    def stamp(self, index: int) -> str:
        """Return the file's name and number of bytes."""
        name = self.name_of(index)
        try:
            size = self._files[name] if is_remote(self.name) else Path(self.name, name).stat().st_size
            return f"{name} {size}"
        except (OSError, KeyError):
            return name

    def _beside(self, image: str, suffixes: Sequence[str]) -> bytes | None:
        """Read the first of `image.txt`, `image.png.txt` and so on, whatever the case of the suffix."""
        for suffix in suffixes:
            for name in (str(PurePosixPath(image).with_suffix("")) + suffix, image + suffix):
                found = name if not self._files else self._sidecars.get(_lower_suffix(name))
                content = None if found is None else read_if_present(self._path(found))
                if content is not None:
                    return content
        return None

    @cached_property
    def _sidecars(self) -> dict[str, str]:
        """Names of the files that may have captions, by the name with a lower-case suffix."""
        suffixes = (*captions_of.TEXT_SUFFIXES, ".json")
        return {_lower_suffix(name): name for name in self._files if name.lower().endswith(suffixes)}

    def _content(self, name: str) -> bytes | Path:
        """Return a local file's path, or a remote file's bytes."""
        if not is_remote(self.name):
            return Path(self.name, name)
        if name not in self._files:
            raise UnreadableError(name, "there is no such file")
        with open_file(self._path(name)) as file:
            return file.read()

    def _path(self, name: str) -> str:
        return f"{self.name.rstrip('/')}/{name}"


def metadata_files(files: Iterable[str]) -> list[str]:
    """Return the tables of metadata: the one at the top, else those of folders, as Hugging Face's image folders.

    Folders of other splits are left out if there is a folder `train`.
    """
    files = list(files)
    top = [name for name in METADATA if name in files]
    found = top[:1] or sorted(name for name in files if PurePosixPath(name).name in METADATA)
    folders = {PurePosixPath(name).parts[0] for name in found}
    if "train" not in folders:
        return found
    return [name for name in found if PurePosixPath(name).parts[0].lower() not in HELD_OUT]


def _load_metadata(data: str, tables: Sequence[str]) -> tuple[Any, list[str]]:
    """Load tables of metadata as one; also return the names of the images below the folder.

    Raises:
        UserError: if a table cannot be read or has no images, or if their columns differ.
    """
    from datasets import concatenate_datasets

    loaded, names = [], []
    for name in tables:
        path = f"{data.rstrip('/')}/{name}"
        kind, options = METADATA[PurePosixPath(name).name]
        table = load_table(kind, path, [path], **options)
        if "file_name" not in table.features or not len(table):
            raise UserError(bad_row([path]) or f"{path} has no column file_name, only {', '.join(table.features)}")
        loaded.append(table)
        names += [str(PurePosixPath(name).parent / file) for file in table["file_name"]]
    try:
        return (loaded[0] if len(loaded) == 1 else concatenate_datasets(loaded)), names
    except Exception as error:  # `datasets` raises several types for columns that differ
        raise UserError(f"{' and '.join(tables[:2])} in {data} have different columns: {error}") from error


def _lower_suffix(name: str) -> str:
    """Return a name with its last suffix in lower case."""
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) + suffix.lower()
