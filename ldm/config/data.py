"""Where images come from and how they are made ready."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ldm.config.section import Section

Size = tuple[int, int]  # height and width, pixels


class ScenesConfig(Section):
    """The built-in data set, used where `--data scenes` is given."""

    num: int = Field(20_000, ge=1)
    seed: int = 0
    concepts: int | None = None  # only the first so many of the list, the most recognisable ones; None: all
    # How often each kind of scene comes, and what captions say: of single things most, or of how things stand to each
    # other, in captions that leave less open.
    mix: Literal["objects", "relations"] = "objects"


class ShardsConfig(Section):
    """How `.tar` shards are read, used where `--data` names some."""

    lanes: int | None = Field(None, ge=1)  # streams that fill a batch; None: as many as batch_size and shards allow
    shuffle_buffer: int = Field(4096, ge=1)  # samples held in memory to be shuffled, in all lanes together


class BucketsConfig(Section):
    """Batches of images of one shape, about `data.size` x `data.size` pixels each."""

    max_aspect: float = Field(2.0, gt=1.0, le=16.0)  # of the longer side to the shorter; what is beyond is cropped


class DataConfig(Section):
    """How images are made ready."""

    size: int = Field(64, ge=1)  # side in pixels, after a resize of the shorter side and a crop
    caption_fields: tuple[str, ...] = ()  # columns or JSON fields (`a.b` is b in a); (): the first of the usual names
    # Where a model of classes finds them: a column or JSON field, or `folder` for the folder that an image lies in.
    # None: the usual column, folder or `.cls`; of scenes, what the first thing in them is.
    class_field: str | None = None
    random_crop: bool = False
    random_flip: bool = False
    random_zoom: float = Field(1.0, ge=1.0)  # enlarged by up to this factor before the crop
    buckets: BucketsConfig | None = None  # None: every image is cut to a square
    map_classes: int | None = Field(None, ge=1, le=256)  # of the maps beside the images; None: none are read
    low_res_noise_std: float = Field(0.0, ge=0.0)  # most noise that small images get, for spatial.kind low_resolution
    max_broken: float = Field(0.1, ge=0.0, le=1.0)  # share of images that may be unreadable before training stops
    workers: int = Field(0, ge=0)  # loader processes; 0 loads in the training process
    scenes: ScenesConfig = ScenesConfig()
    shards: ShardsConfig = ShardsConfig()

    def sizes(self, multiple: int) -> tuple[Size, ...]:
        """Shapes of the images in training, the square first; sides of the others are multiples of `multiple`.

        A width has the greatest height with which it covers no more than the square does.
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
