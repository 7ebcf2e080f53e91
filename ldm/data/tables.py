"""Tables that Hugging Face `datasets` opens: parquet files and data sets of the Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ldm.data import captions as captions_of
from ldm.data.broken import UnreadableError
from ldm.data.classes import Labels, choose_field
from ldm.data.files import is_remote
from ldm.data.images import decode, decode_map, header_size
from ldm.data.sources import IndexedSource, Split
from ldm.data.table_files import local_files
from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.config.data import DataConfig, Size

MAP_COLUMN = "map"


def load_table(kind: str, data: str, files: Sequence[str] | None = None, **options: Any) -> Any:
    """Load the `train` split of a Hub data set, or files of a kind (json, csv, parquet); UserError if that fails."""
    from datasets import disable_progress_bars, load_dataset
    from datasets.utils import logging

    disable_progress_bars()
    logging.set_verbosity(logging.CRITICAL)  # the error repeats what it logs
    if files is not None:
        options["data_files"] = files[0] if is_remote(files[0]) else local_files(files)
    try:
        table = load_dataset(kind, split="train", **options)
        bare = {name: name.strip().removeprefix("\ufeff") for name in table.column_names}
        return table.rename_columns(bare) if any(name != other for name, other in bare.items()) else table
    except Exception as error:  # `datasets` raises dozens of types for missing, broken and unreachable data
        cause = error.__cause__ or error  # the error itself often says only that generating the data set failed
        reason = " ".join(str(cause).split())[:300] or type(cause).__name__
        reason = bad_row(files or ()) or reason
        raise UserError(f"data {data!r} cannot be opened: {reason}") from error


def bad_row(files: Sequence[str]) -> str | None:
    """Describe the first line of local `.jsonl` files that is not a JSON object; None if there is none."""
    for file in (Path(each) for each in files if each.endswith(".jsonl") and not is_remote(each)):
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
        for number, line in enumerate(lines, 1):
            try:
                sound = not line.strip() or isinstance(json.loads(line), dict)
            except ValueError:
                sound = False
            if not sound:
                example = '{"file_name": "a.png", "text": "a caption"}'
                return (
                    f"line {number} of {file} is {line[:60]!r}; write one JSON object in each line, such as {example}"
                )
    return None


class TableSource(IndexedSource):
    """Images of a table: a column of images, and columns of captions, classes and maps if there are any."""

    def __init__(self, table: Any, data: str, config: DataConfig) -> None:
        from datasets import ClassLabel
        from datasets import Image as ImageFeature

        columns, self.name = table.features, data
        images = [name for name, feature in columns.items() if isinstance(feature, ImageFeature)]
        self.has_maps = MAP_COLUMN in images
        if not [name for name in images if name != MAP_COLUMN]:
            raise UserError(f"data {data!r} has no column of images, only {', '.join(columns)}")
        if not len(table):
            raise UserError(f"data {data!r} has no rows")
        self._fields = captions_of.choose_fields(columns, config.caption_fields, data)
        self._texts = table.select_columns(captions_of.columns_of(columns, self._fields))
        named = [name for name, feature in columns.items() if isinstance(feature, ClassLabel)]
        column = choose_field(columns, config.class_field, data) if config.class_field or not named else named[0]
        if column is not None:  # of numbers, names, or ClassLabel, which is numbers with names
            self.labels = Labels(list(table[column]), getattr(columns[column], "names", None))
        # Not decoded by `datasets`, whose errors would not say which image is broken.
        encoded = {name: table.select_columns([name]).cast_column(name, ImageFeature(decode=False)) for name in images}
        self._column = next(name for name in images if name != MAP_COLUMN)
        self._images, self._maps = encoded[self._column], encoded.get(MAP_COLUMN)
        self._fingerprint: str = table._fingerprint  # `datasets`' own, of the files or of the Hub's revision

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> Image.Image:
        return decode(*self._content(self._images, self._column, index))

    def map(self, index: int) -> Image.Image:
        if self._maps is None:
            raise self.no_maps()
        return decode_map(*self._content(self._maps, MAP_COLUMN, index))

    def shape(self, index: int) -> Size:
        return header_size(*self._content(self._images, self._column, index))

    def captions(self, index: int) -> list[str]:
        if not self._fields:
            return [""]
        try:
            return captions_of.of_record(self._texts[index], self._fields) or [""]
        except ValueError as error:
            raise UnreadableError(self.name_of(index), error) from error

    def name_of(self, index: int) -> str:
        return f"{self.name}, row {index}"

    def stamp(self, index: int) -> str:
        return f"{self._fingerprint} {index}"

    def _content(self, images: Any, column: str, index: int) -> tuple[bytes | Path, str]:
        """An image's bytes or file, and its name."""
        image = images[index][column] or {}
        name = image.get("path") or self.name_of(index)
        if image.get("bytes") is not None:
            return image["bytes"], f"{name} (row {index})" if image.get("path") else name
        if not image.get("path"):
            raise UnreadableError(name, "there is no image in it")
        return Path(image["path"]), name


class ParquetSource(TableSource):
    """A parquet file, or a folder of them."""

    accepts = "parquet files"

    @classmethod
    def matches(cls, data: str) -> bool:
        """A path or URL of a .parquet file, or a folder with some."""
        return bool(_parquet_files(data))

    @classmethod
    def open(cls, data: str, config: DataConfig, split: Split) -> ParquetSource:
        """Load all files as one table."""
        return cls(load_table("parquet", data, _parquet_files(data)), data, config)


class HubSource(TableSource):
    """The `train` split of a data set of the Hugging Face Hub."""

    accepts = "a Hub id (owner/name)"

    @classmethod
    def matches(cls, data: str) -> bool:
        """Return whether the data is named `owner/name`, without a suffix."""
        return re.fullmatch(r"[^./][^/]*/[^/]+", data) is not None and not Path(data).suffix

    @classmethod
    def open(cls, data: str, config: DataConfig, split: Split) -> HubSource:
        """Download the data set, or find it in the cache."""
        return cls(load_table(data, data), data, config)


def _parquet_files(data: str) -> list[str]:
    path = Path(data)
    if is_remote(data) or path.is_file():
        return [data] if data.endswith(".parquet") else []
    return sorted(map(str, path.glob("*.parquet")))
