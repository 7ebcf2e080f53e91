"""SDXL size and crop conditioning."""

from __future__ import annotations

from typing import NamedTuple


class SizeConditioning(NamedTuple):
    """SDXL size and crop conditioning (Podell et al. 2023, section 2.2); (width, height) or (left, top) in pixels."""

    original: tuple[int, int] | None = None  # size of the image before it was cropped; None: the generated size
    corner: tuple[int, int] = (0, 0)  # of the crop
    target: tuple[int, int] | None = None  # size of the crop; None: the generated size

    def sizes(self, size: tuple[int, int]) -> list[int]:
        """Return the six numbers that models take, vertical before horizontal, for images of `size`."""
        return [side for pair in (self.original or size, self.corner, self.target or size) for side in pair[::-1]]
