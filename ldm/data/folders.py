"""Folders of captioned images: with a table of metadata, with a text beside each image, or bare."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
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
from ldm.data.tables import load_table
from ldm.data.walk import walk
from ldm.errors import UserError, UserNote

if TYPE_CHECKING:
    from ldm.config.data import DataConfig, Size

MAP_FIELDS = ("map", "map_file_name")  # of metadata; the second is the name in Hugging Face's image folders
METADATA: dict[str, tuple[str, dict[str, Any]]] = {
    "metadata.jsonl": ("json", {}),
    "metadata.csv": ("csv", {"keep_default_na": False}),
}


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
        for metadata, (kind, options) in METADATA.items():
            if metadata in files:
                path = f"{data.rstrip('/')}/{metadata}"
                return cls._with_metadata(data, path, load_table(kind, path, [path], **options), config, files)
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
        cls, data: str, path: str, table: Any, config: DataConfig, files: Mapping[str, int | None]
    ) -> FolderSource:
        columns, names = table.features, table["file_name"] if "file_name" in table.features else ()
        if not names:
            raise UserError(f"{path} has no column file_name, only {', '.join(columns)}")
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
            text, record = (self._beside(name, suffix) for suffix in (".txt", ".json"))
            return captions_of.of_contents(text, record, self._fields)
        except (OSError, ValueError) as error:
            raise UnreadableError(name, error) from error

    def name_of(self, index: int) -> str:
        """Return the file's name below the folder."""
        return str(self.names[index])

    def stamp(self, index: int) -> str:
        """Return the file's name and number of bytes."""
        name = self.name_of(index)
        try:
            size = self._files[name] if is_remote(self.name) else Path(self.name, name).stat().st_size
            return f"{name} {size}"
        except (OSError, KeyError):
            return name

    def _beside(self, image: str, suffix: str) -> bytes | None:
        name = str(PurePosixPath(image).with_suffix(suffix))
        return read_if_present(self._path(name)) if name in self._files or not is_remote(self.name) else None

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
