"""Where captioned images come from: sources that answer by index, and shards that are read as streams."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from ldm.config.data import DataConfig, Size
from ldm.data import captions as captions_of
from ldm.data.broken import UnreadableError
from ldm.data.cached import CachedData, is_cache
from ldm.data.classes import Labels, choose_field, no_classes
from ldm.data.folders import FolderSource, open_folder
from ldm.data.images import decode, decode_map, header_size
from ldm.data.shards import Shards, open_shards, shards_of
from ldm.data.tables import load_table
from ldm.errors import UserError

MAP_COLUMN = "map"


class Source(Protocol):
    """A finite, indexable collection of captioned images.

    Each answer about a sample that cannot be used is an UnreadableError, which names it.
    """

    def __len__(self) -> int:
        """Number of images."""
        ...

    def image(self, index: int) -> Image.Image | np.ndarray:
        """An RGB image; a source of ready-made bytes gives uint8 (H, W, 3)."""
        ...

    def shape(self, index: int) -> Size:
        """Height and width of an image, found without decoding it."""
        ...

    def captions(self, index: int) -> list[str]:
        """All captions of an image, at least one; one of them is drawn each time it is used."""
        ...

    def label(self, index: int) -> int:
        """The class of an image; UserError where the data tells no classes."""
        ...

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes by number, () where numbers are all that is known; UserError where there are none."""
        ...

    def stamp(self, index: int) -> str:
        """What tells an image from others and from an older version of it, found without decoding it."""
        ...


@runtime_checkable
class MapSource(Protocol):
    """A source with a map of classes beside each image."""

    def map(self, index: int) -> Image.Image | np.ndarray:
        """Classes of the pixels of an image, of mode L or uint8 (H, W)."""
        ...


class TableSource:
    """Images of a Hugging Face `datasets` table: an image column, and columns of captions if there are any."""

    def __init__(
        self,
        table: Any,
        data: str,
        image_column: str,
        caption_fields: tuple[str, ...],
        class_column: str | None = None,
    ) -> None:
        from datasets import Image as ImageFeature

        # Not decoded by `datasets`, whose errors would not say which image is broken.
        self._images = table.select_columns([image_column]).cast_column(image_column, ImageFeature(decode=False))
        self._column, self._fields, self._data = image_column, caption_fields, data
        self._texts = table.select_columns(captions_of.columns_of(table.features, caption_fields))
        has_maps = isinstance(table.features.get(MAP_COLUMN), ImageFeature)
        maps = table.select_columns([MAP_COLUMN]) if has_maps else None
        self._maps = None if maps is None else maps.cast_column(MAP_COLUMN, ImageFeature(decode=False))
        self._labels = None if class_column is None else _labels(table, class_column)
        self._fingerprint: str = table._fingerprint  # `datasets`' own, of the files or of the Hub's revision

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> Image.Image:
        """The image at `index`, upright and in RGB; UnreadableError when it cannot be read."""
        return decode(*self._content(self._images, self._column, index))

    def map(self, index: int) -> Image.Image:
        """The map at `index`, of a second column of images; UnreadableError when there is none or it is damaged."""
        if self._maps is None:
            raise UnreadableError(f"{self._data}, row {index}", f"it has no map: there is no column {MAP_COLUMN}")
        return decode_map(*self._content(self._maps, MAP_COLUMN, index))

    def shape(self, index: int) -> Size:
        """Height and width of the image at `index`."""
        return header_size(*self._content(self._images, self._column, index))

    def captions(self, index: int) -> list[str]:
        """The captions at `index`; a column of lists gives several, and so do several columns."""
        if not self._fields:
            return [""]
        try:
            return captions_of.of_record(self._texts[index], self._fields) or [""]
        except ValueError as error:
            raise UnreadableError(f"{self._data}, row {index}", error) from error

    def label(self, index: int) -> int:
        """The class at `index`; UnreadableError when it has none, UserError when no row has."""
        return self._classes().number(index, f"{self._data}, row {index}")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the classes by number, () where numbers are all that is known; UserError where there are none."""
        return self._classes().names

    def _classes(self) -> Labels:
        if self._labels is None:
            raise no_classes(self._data)
        return self._labels

    def stamp(self, index: int) -> str:
        """Of the table and the row."""
        return f"{self._fingerprint} {index}"

    def _content(self, images: Any, column: str, index: int) -> tuple[bytes | Path, str]:
        """An image's bytes or file, and what to call it."""
        image = images[index][column] or {}
        name = image.get("path") or f"{self._data}, row {index}"
        if image.get("bytes") is not None:
            return image["bytes"], f"{name} (row {index})" if image.get("path") else name
        if not image.get("path"):
            raise UnreadableError(name, "there is no image in it")
        return Path(image["path"]), name


def open_source(data: str, config: DataConfig, split: Literal["train", "test"] = "train") -> Source | Shards:
    """What `--data` names: `scenes`, a folder of images, a cache, .tar shards, parquet files, or a Hub data set id.

    Only `scenes` has a `split`; other data is taken as it is.
    """
    if data == "scenes":
        from ldm.data.scenes import ScenesDataset

        if config.caption_fields:
            raise UserError("data.caption_fields has no use for scenes, which have captions of their own")
        if config.class_field is not None:
            raise UserError("data.class_field has no use for scenes, whose class is that of the first thing in them")
        return ScenesDataset(config.scenes, config.size, split, map_classes=config.map_classes)
    if is_cache(data):
        return CachedData(Path(data))
    shards = shards_of(data)
    if shards is not None:
        return open_shards(shards, config.caption_fields, config.class_field)
    path = Path(data)
    parquet = sorted(path.glob("*.parquet")) if path.is_dir() else [path] * (path.suffix == ".parquet")
    if parquet and all(file.is_file() for file in parquet):
        return _table(load_table("parquet", data, data_files=[str(file) for file in parquet]), data, config)
    if path.is_dir():
        return open_folder(path, config.caption_fields, config.class_field)
    if path.suffix or path.is_absolute() or data.startswith(".") or data.count("/") != 1:
        raise UserError(
            f"no data at {data!r}: expected `scenes`, a folder of images, .tar shards, a .parquet file or a Hub id"
        )
    return _table(load_table(data, data), data, config)


def open_indexed(data: str, config: DataConfig, split: Literal["train", "test"] = "train") -> Source:
    """As `open_source`, for work that needs images in any order; UserError for shards."""
    source = open_source(data, config, split)
    if isinstance(source, Shards):
        raise UserError(f"{data} is read as a stream; this needs images by number: a folder, parquet or scenes")
    return source


def _table(table: Any, data: str, config: DataConfig) -> TableSource:
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    columns = [name for name, feature in table.features.items() if isinstance(feature, ImageFeature)]
    images = [name for name in columns if name != MAP_COLUMN]
    if not images:
        raise UserError(f"data {data!r} has no column of images, only {', '.join(table.features)}")
    if not len(table):
        raise UserError(f"data {data!r} holds no images")
    fields = captions_of.choose_fields(table.features, config.caption_fields, data)
    named = [name for name, feature in table.features.items() if isinstance(feature, ClassLabel)]
    column = choose_field(table.features, config.class_field, data) if config.class_field or not named else named[0]
    return TableSource(table, data, images[0], fields, column)


def _labels(table: Any, column: str) -> Labels:
    """A column of numbers, names, or of `datasets`' ClassLabel, which is numbers with names."""
    names = getattr(table.features[column], "names", None)
    return Labels(list(table[column]), names)


__all__ = ["FolderSource", "MapSource", "Shards", "Source", "TableSource", "open_indexed", "open_source"]
