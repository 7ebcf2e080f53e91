"""How images are read and prepared; data sources add their own sections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ldm.config.section import Section, component_fields, extended
from ldm.registry import DATA_SOURCES

Size = tuple[int, int]  # height and width, pixels


class BucketsConfig(Section):
    """Batches of images of one shape, about `data.size` x `data.size` pixels each."""

    max_aspect: float = Field(2.0, gt=1.0, le=16.0)  # of longer to shorter side; longer images are cropped


class DataConfigBase(Section):
    """How images are prepared."""

    size: int = Field(64, ge=1)  # side in pixels, after a resize of the shorter side and a crop
    caption_fields: tuple[str, ...] = ()  # columns or JSON fields (`a.b` is b in a); (): the usual ones
    # Where classes are: a column or JSON field, or `folder` for the name of an image's folder. None: the usual column,
    # folder or `.cls`; the class of a scene is its first object.
    class_field: str | None = None
    random_crop: bool = False
    random_flip: bool = False
    random_zoom: float = Field(1.0, ge=1.0)  # enlarged by up to this factor before the crop
    buckets: BucketsConfig | None = None  # None: every image is cropped to a square
    map_classes: int | None = Field(None, ge=1, le=256)  # in maps of the images; None: maps are not read
    low_res_noise_std: float = Field(0.0, ge=0.0)  # largest noise on images, for spatial.kind low_resolution
    # What `validation_loss` is measured on: a share of the data that is held out of training (0: none), or other data,
    # named as --data is. None: 2 %, at most 512 images, from 500 images on; scenes of another seed for scenes.
    validation: Annotated[float, Field(ge=0.0, lt=1.0)] | str | None = None
    max_broken: float = Field(0.1, ge=0.0, le=1.0)  # largest share of unreadable images; more stop the training
    workers: int = Field(0, ge=0)  # loader processes; 0 loads in the training process

    def sizes(self, multiple: int) -> tuple[Size, ...]:
        """Return the image shapes of training, the square and the buckets', with sides divisible by `multiple`.

        Each width goes with the largest height that does not exceed the square's area.
        """
        square = (self.size, self.size)
        if self.buckets is None:
            return (square,)
        limit, found = self.buckets.max_aspect, []
        for width in range(multiple, self.size * self.size // multiple + 1, multiple):
            height = self.size * self.size // (width * multiple) * multiple
            if height and max(width / height, height / width) <= limit:
                found.append((height, width))
        return (square, *(size for size in found if size[0] != size[1]))


if TYPE_CHECKING:

    class DataConfig(DataConfigBase):
        """Options of image preparation, and the sections of the data sources."""

        def __init__(self, **options: Any) -> None: ...
        def __getattr__(self, source: str) -> Any: ...

else:
    SOURCES = {name: source for name, source in DATA_SOURCES.items() if source.section is not None}
    DataConfig = extended(DataConfigBase, component_fields(SOURCES))
    DataConfig.__name__ = DataConfig.__qualname__ = "DataConfig"
