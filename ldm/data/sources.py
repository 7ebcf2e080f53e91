"""Where captioned pictures come from: each source answers `picture(index)` and `captions(index)`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from ldm.config import DataConfig
from ldm.data.pictures import to_rgb
from ldm.errors import UserError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class Source(Protocol):
    """A finite, indexable collection of captioned pictures."""

    def __len__(self) -> int:
        """Number of pictures."""
        ...

    def picture(self, index: int) -> Image.Image | np.ndarray:
        """An RGB picture; a source of ready-made bytes gives uint8 (H, W, 3)."""
        ...

    def captions(self, index: int) -> list[str]:
        """All captions of a picture; one of them is drawn each time it is used."""
        ...


class TableSource:
    """Pictures of a Hugging Face `datasets` table with an image column and, perhaps, a text column."""

    def __init__(self, table: Any, image_column: str, text_column: str | None) -> None:
        self.table, self.image_column, self.text_column = table, image_column, text_column
        # Captions alone are read without decoding the picture beside them.
        self._texts = table.select_columns([text_column]) if text_column else None

    def __len__(self) -> int:
        return len(self.table)

    def picture(self, index: int) -> Image.Image:
        """The picture at `index`, upright and in RGB; UserError when its file cannot be read."""
        try:
            return to_rgb(self.table[index][self.image_column])
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"picture {index} of the data cannot be read: {error}") from error

    def captions(self, index: int) -> list[str]:
        """The captions at `index`; a column of lists gives several."""
        if self._texts is None:
            return [""]
        text = self._texts[index][self.text_column]
        return [str(caption) for caption in text] if isinstance(text, list) else [str(text or "")]


def open_source(data: str, config: DataConfig, split: Literal["train", "test"] = "train") -> Source:
    """The source that `--data` names: `scenes`, a folder of pictures, a parquet file, or a Hub data set id.

    Only `scenes` has a `split`; other data is taken as it is.
    """
    if data == "scenes":
        from ldm.data.scenes import ScenesDataset

        return ScenesDataset(config.scenes, config.size, split)
    path = Path(data)
    if path.is_dir():
        return _folder(path)
    if path.suffix == ".parquet" and path.is_file():
        return _table(_load("parquet", data_files=str(path)), data)
    if path.suffix or path.is_absolute() or data.startswith(".") or data.count("/") != 1:
        raise UserError(f"no data at {data!r}: expected `scenes`, a folder of pictures, a .parquet file or a Hub id")
    return _table(_load(data), data)


def _load(name: str, **options: Any) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(name, split="train", **options)
    except Exception as error:  # `datasets` raises dozens of types for missing, broken and unreachable data
        raise UserError(f"data {name!r} cannot be opened: {' '.join(str(error).split())}") from error


def _table(table: Any, data: str) -> TableSource:
    from datasets import Image as ImageFeature

    images = [name for name, feature in table.features.items() if isinstance(feature, ImageFeature)]
    if not images:
        raise UserError(f"data {data!r} has no column of pictures, only {', '.join(table.features)}")
    texts = [name for name in ("captions", "text", "caption", "prompt") if name in table.features]
    if not len(table):
        raise UserError(f"data {data!r} holds no pictures")
    return TableSource(table, images[0], texts[0] if texts else None)


def _folder(path: Path) -> TableSource:
    """A folder with `metadata.jsonl` or `metadata.csv`, or with `picture.txt` beside `picture.png`, or bare."""
    if any((path / f"metadata.{suffix}").is_file() for suffix in ("jsonl", "csv")):
        return _table(_load("imagefolder", data_dir=str(path)), str(path))
    from datasets import Dataset
    from datasets import Image as ImageFeature

    pictures = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
    if not pictures:
        raise UserError(f"no pictures in {path}: looked for {' '.join(PICTURE_SUFFIXES)}")
    columns: dict[str, list[str]] = {"image": [str(p) for p in pictures]}
    sidecars = [p.with_suffix(".txt") for p in pictures]
    if any(sidecar.is_file() for sidecar in sidecars):
        columns["text"] = [s.read_text().strip() if s.is_file() else "" for s in sidecars]
    return _table(Dataset.from_dict(columns).cast_column("image", ImageFeature()), str(path))
