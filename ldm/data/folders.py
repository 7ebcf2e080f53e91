"""Folders of captioned images: with a table of metadata, with a text beside each image, or bare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.config.data import Size
from ldm.data import captions as captions_of
from ldm.data.broken import UnreadableError
from ldm.data.classes import FOLDER, Labels, choose_field, no_classes, of_folders
from ldm.data.images import decode, decode_map, header_size
from ldm.data.tables import load_table
from ldm.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")

MAP_SUFFIX = ".map.png"  # in place of an image's own
MAP_FIELDS = ("map", "map_file_name")  # of metadata; the second is the name that Hugging Face's image folders know


class FolderSource:
    """Image files below a folder; their captions lie in a table's rows or beside them."""

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        rows: Any | None = None,
        caption_fields: tuple[str, ...] = (),
        labels: Labels | None = None,
        maps: Sequence[str | None] | None = None,
    ) -> None:
        self.folder, self.names, self.maps, self._labels = folder, names, maps, labels
        self._rows, self._fields = rows, caption_fields

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> Image.Image:
        """The image at `index`, upright and in RGB; UnreadableError when its file cannot be read."""
        return decode(self.folder / self._name(index), self._name(index))

    def map(self, index: int) -> Image.Image:
        """The map at `index`, which its row names or `image.map.png` is; UnreadableError when it cannot be read."""
        named = None if self.maps is None else self.maps[index]
        name = named or str(Path(self._name(index)).with_suffix(MAP_SUFFIX))
        return decode_map(self.folder / name, name)

    def shape(self, index: int) -> Size:
        """Height and width of the image at `index`."""
        return header_size(self.folder / self._name(index), self._name(index))

    def captions(self, index: int) -> list[str]:
        """The captions at `index`, [""] where nobody wrote any; UnreadableError when they cannot be read."""
        name = self._name(index)
        try:
            if self._rows is None:
                return captions_of.beside(self.folder / name, self._fields)
            return captions_of.of_record(self._rows[index] if self._fields else {}, self._fields) or [""]
        except (OSError, ValueError) as error:
            raise UnreadableError(name, error) from error

    def label(self, index: int) -> int:
        """The class at `index`; UnreadableError when it has none, UserError when no image of the folder has."""
        return self._classes().number(index, self._name(index))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the classes by number, () where numbers are all that is known; UserError where there are none."""
        return self._classes().names

    def _classes(self) -> Labels:
        if self._labels is None:
            raise no_classes(str(self.folder))
        return self._labels

    def stamp(self, index: int) -> str:
        """A file's name and number of bytes."""
        name = self._name(index)
        try:
            return f"{name} {(self.folder / name).stat().st_size}"
        except OSError:
            return name

    def _name(self, index: int) -> str:
        return str(self.names[index])


def open_folder(path: Path, caption_fields: tuple[str, ...], class_field: str | None = None) -> FolderSource:
    """A folder with `metadata.jsonl` or `metadata.csv`, or with `image.txt` beside `image.png`, or bare."""
    for name, kind, options in (("metadata.jsonl", "json", {}), ("metadata.csv", "csv", {"keep_default_na": False})):
        metadata = path / name
        if metadata.is_file():
            table = load_table(kind, str(metadata), data_files=str(metadata), **options)
            return _with_metadata(path, metadata, table, caption_fields, class_field)
    relative = (file.relative_to(path) for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    # Hidden files are thumbnails and what macOS leaves beside images on other disks.
    images = (name for name in relative if not name.name.endswith(MAP_SUFFIX))
    names = sorted(str(name) for name in images if not any(part.startswith(".") for part in name.parts))
    if not names:
        raise UserError(f"no images in {path}: looked for {' '.join(IMAGE_SUFFIXES)}")
    if class_field not in (None, FOLDER):
        raise UserError(f"data.class_field {class_field} needs {path}/metadata.jsonl or .csv, where it is a column")
    labels = of_folders(names, asked=class_field is not None)
    return FolderSource(path, names, caption_fields=caption_fields, labels=labels)


def _with_metadata(
    folder: Path, metadata: Path, table: Any, caption_fields: tuple[str, ...], class_field: str | None
) -> FolderSource:
    if "file_name" not in table.features:
        raise UserError(f"{metadata} has no column file_name, only {', '.join(table.features)}")
    fields = captions_of.choose_fields(table.features, caption_fields, str(metadata))
    rows = table.select_columns(captions_of.columns_of(table.features, fields))
    if class_field == FOLDER:
        labels = of_folders(table["file_name"])
    else:
        column = choose_field(table.features, class_field, str(metadata))
        labels = None if column is None else Labels(list(table[column]))
    field = next((field for field in MAP_FIELDS if field in table.features), None)
    return FolderSource(folder, table["file_name"], rows, fields, labels, None if field is None else table[field])
