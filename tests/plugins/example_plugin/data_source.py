"""A data source: `--data stripes` is images of stripes in a colour that their captions name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ldm.config.section import Section
from ldm.data.sources import IndexedSource
from ldm.registry import DATA_SOURCES

if TYPE_CHECKING:
    from ldm.config.data import DataConfig

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (40, 60, 220)}


class StripesConfig(Section):
    num: int = 32


@DATA_SOURCES.register("stripes")
class Stripes(IndexedSource):
    section = StripesConfig
    accepts = "`stripes`"

    def __init__(self, num: int) -> None:
        self.num = num

    @classmethod
    def matches(cls, data: str) -> bool:
        return data == "stripes"

    @classmethod
    def open(cls, data: str, config: DataConfig, split: str) -> Stripes:
        return cls(config.stripes.num)

    def __len__(self) -> int:
        return self.num

    def image(self, index: int) -> np.ndarray:
        image = np.full((32, 32, 3), 255, dtype=np.uint8)
        image[:, (np.arange(32) + index) % 8 < 4] = list(COLOURS.values())[index % 3]
        return image

    def captions(self, index: int) -> list[str]:
        return [f"{list(COLOURS)[index % 3]} stripes"]
