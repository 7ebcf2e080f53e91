"""Which images are held out of training, and that training never sees them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from ldm import config
from ldm.config.data import DataConfig
from ldm.data.loader import BatchShare
from ldm.data.preview import validation_of
from ldm.data.scenes.dataset import ScenesDataset
from ldm.data.shards import Shards
from ldm.data.sources import IndexedSource, Source
from ldm.data.validation import held_out_count


class Named(IndexedSource):
    """Images with keys, in any order."""

    def __init__(self, keys: list[str]) -> None:
        self.keys = keys

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, index: int) -> str:
        return self.keys[index]

    def image(self, index: int) -> np.ndarray:
        return np.full((32, 32 + 32 * (index % 2), 3), index % 256, dtype=np.uint8)

    def captions(self, index: int) -> list[str]:
        return [self.keys[index]]


def numbered(count: int) -> Named:
    return Named([f"{number}.png" for number in range(count)])


def trained_on(source: Source, *options: str, steps: int) -> set[int]:
    asked = config.load("tiny", ["data.size=32", *options])
    batches = source.batches(asked, BatchShare(4), 1, steps)
    return {index for batch in batches for index in batch.indices}


@pytest.mark.parametrize(
    ("images", "setting", "count"),
    [
        (499, None, 0),
        (500, None, 10),
        (100_000, None, 512),
        (100, 0.1, 10),
        (2, 0.9, 1),
        (5_000, 0.0, 0),
        (5_000, "other", 0),
    ],
)
def test_two_percent_are_held_out_from_500_images_on_or_as_set(
    images: int, setting: float | str | None, count: int
) -> None:
    assert held_out_count(images, DataConfig(validation=setting)) == count


def test_a_share_outside_of_0_to_1_is_an_error() -> None:
    for share in (-0.1, 1.0):
        with pytest.raises(ValidationError):
            DataConfig(validation=share)


def test_the_choice_follows_the_keys_and_not_their_order() -> None:
    keys = [f"{number}.png" for number in range(600)]
    found = [
        {source.keys[index] for index in source.held_out(DataConfig())} for source in (Named(keys), Named(keys[::-1]))
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 12


@pytest.mark.parametrize("buckets", [(), ("data.buckets={}",)])
def test_training_uses_every_image_but_those_held_out(buckets: tuple[str, ...]) -> None:
    source = numbered(40)
    held = set(source.held_out(DataConfig(validation=0.2)).tolist())
    seen = trained_on(source, "data.validation=0.2", *buckets, steps=20)
    assert len(held) == 8
    assert seen == set(range(40)) - held


def test_training_on_less_than_500_images_uses_all_of_them() -> None:
    assert trained_on(numbered(40), steps=10) == set(range(40))
    assert validation_of(numbered(40), DataConfig(), 16) is None


def test_a_path_is_validated_on_and_all_images_are_trained_on(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "other.png")
    (tmp_path / "other.txt").write_text("another image")
    validation = validation_of(numbered(600), DataConfig(validation=str(tmp_path)), 16)
    assert validation is not None
    assert not validation.cached
    assert validation.source.captions(0) == ["another image"]
    assert len(numbered(600).held_out(DataConfig(validation=str(tmp_path)))) == 0


def shards(folder: Path) -> Shards:
    counts = (30, 20, 10)
    for number, count in enumerate(counts):
        with tarfile.open(folder / f"{number}.tar", "w") as file:
            for row in range(count):
                content = io.BytesIO()
                Image.new("RGB", (32, 32)).save(content, "png")
                for name, data in ((f"{row:03d}.png", content.getvalue()), (f"{row:03d}.txt", f"{row}".encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    file.addfile(member, io.BytesIO(data))
    return Shards([str(folder / f"{number}.tar") for number in range(3)], counts)


def test_streamed_shards_never_yield_what_is_held_out(tmp_path: Path) -> None:
    source = shards(tmp_path)
    held = set(source.held_out(DataConfig(validation=0.2)).tolist())
    assert len(held) == 12
    assert trained_on(source, "data.validation=0.2", "data.shards.lanes=2", steps=36) == set(range(60)) - held
    validation = validation_of(source, DataConfig(validation=0.2), 16)
    assert validation is not None
    assert len(validation.source) == 12


def test_scenes_are_validated_on_another_seed_and_all_are_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = DataConfig(size=16, scenes={"num": 500})
    monkeypatch.setattr("ldm.data.scenes.dataset._fill", lambda folder, spec, processes: _fake(folder, spec.num))
    source = ScenesDataset(options.scenes, 16, cache=tmp_path)
    validation = validation_of(source, options, 16)
    assert validation is not None
    assert len(validation.source) == 10
    assert validation.source.stamp(0) != source.stamp(0)
    assert len(source.held_out(options)) == 0
    assert len(source.held_out(options.model_copy(update={"validation": 0.1}))) == 50


def _fake(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    np.save(folder / "pictures.npy", np.zeros((count, 16, 16, 3), dtype=np.uint8))
    (folder / "captions.jsonl").write_text('["a"]\n' * count)
