"""Data sources: a further kind is one class, and remote folders are read as local ones."""

import io
from collections.abc import Iterator

import fsspec
import numpy as np
import pytest
from PIL import Image

from ldm import config
from ldm.config.data import DataConfig, DataConfigBase
from ldm.config.section import Section, component_fields, extended
from ldm.data.loader import BatchShare
from ldm.data.preview import HeldSource, all_captions, shown_images, some_images
from ldm.data.shards import Shards
from ldm.data.sources import IndexedSource, open_source
from ldm.errors import UserError
from ldm.registry import DATA_SOURCES


class NumbersConfig(Section):
    count: int = 10


class Numbers(IndexedSource):
    """A source with the methods that every source needs, and no more."""

    section = NumbersConfig
    accepts = "`numbers`"

    def __init__(self, count: int) -> None:
        self.count = count

    @classmethod
    def matches(cls, data: str) -> bool:
        return data == "numbers"

    @classmethod
    def open(cls, data: str, config: DataConfig, split: str) -> "Numbers":
        return cls(config.numbers.count)

    def __len__(self) -> int:
        return self.count

    def image(self, index: int) -> np.ndarray:
        return np.full((32, 32, 3), index, dtype=np.uint8)

    def captions(self, index: int) -> list[str]:
        return [f"number {index}"]


@pytest.fixture
def options() -> Iterator[DataConfig]:
    """Options with a section of the source `numbers`, which is registered meanwhile."""
    DATA_SOURCES.register("numbers", Numbers)
    yield extended(DataConfigBase, component_fields({"numbers": Numbers})).model_validate(
        {"size": 32, "numbers": {"count": 12}}
    )
    del DATA_SOURCES._components["numbers"]


def test_a_registered_source_is_opened_with_its_own_options(options: DataConfig) -> None:
    source = open_source("numbers", options)
    assert isinstance(source, Numbers)
    assert len(source) == 12
    with pytest.raises(UserError, match="expected `numbers`, `scenes`, a folder of `ldm cache`"):
        open_source("./none", options)


def test_a_source_with_only_the_required_methods_can_do_everything(options: DataConfig) -> None:
    source, loaded = open_source("numbers", options), config.load("tiny")
    batch = next(source.batches(loaded, BatchShare(4), 1, 1))
    assert batch.captions == [f"number {index}" for index in batch.indices]
    assert source.shape(3) == (32, 32)
    assert source.preview(2) is source
    assert source.latents is None
    assert [image[0, 0, 0] for image in some_images(source, 3, 32)] == [0, 6, 11]
    assert shown_images(source, DataConfig(size=32), 2).shape == (2, 32, 32, 3)
    assert len(list(all_captions(source))) == 12
    assert [list(source.read(block)) for block in source.blocks(8)] == [list(range(8)), list(range(8, 12))]
    assert source.fingerprint(source.blocks(8)[0]) != source.fingerprint(source.blocks(8)[1])
    with pytest.raises(UserError, match=r"has no classes: set data\.class_field"):
        source.label(0)


def test_samples_held_in_memory_are_those_of_the_source(options: DataConfig) -> None:
    held = HeldSource(open_source("numbers", options), 3)
    assert [held.captions(index) for index in range(len(held))] == [["number 0"], ["number 6"], ["number 11"]]


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12), "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_a_remote_folder_of_images_is_read_as_a_local_one() -> None:
    bucket = fsspec.filesystem("memory")
    bucket.pipe({"/images/ant/a.png": png(), "/images/ant/a.txt": b"an ant", "/images/bee/b.png": b"broken"})
    source = open_source("memory://images", DataConfig())
    assert [source.captions(index) for index in range(2)] == [["an ant"], [""]]
    assert (source.image(0).size, source.shape(0)) == ((16, 12), (12, 16))
    assert [source.label(index) for index in range(2)] == [0, 1]
    assert source.stamp(1) == "bee/b.png 6"
    with pytest.raises(UserError, match=r"^bee/b\.png cannot be read: "):
        source.image(1)
    with pytest.raises(UserError, match="no images in memory://nothing"):
        open_source("memory://nothing", DataConfig())


def test_a_remote_folder_of_shards_is_a_stream(tmp_path) -> None:
    from ldm.data.scenes import write_webdataset

    write_webdataset(tmp_path / "scenes", 6, 16, processes=1, concepts=12)
    bucket = fsspec.filesystem("memory")
    for path in (tmp_path / "scenes").iterdir():
        bucket.pipe(f"/shards/{path.name}", path.read_bytes())
    source = open_source("memory://shards", DataConfig(size=16))
    assert isinstance(source, Shards)
    assert len(source) == 6
    assert len(list(source.scan(6))) == 6


def test_an_unknown_protocol_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"nobucket://x cannot be opened: Protocol not known"):
        open_source("nobucket://x", DataConfig())
