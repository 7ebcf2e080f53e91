"""Classes of images: columns, folders, `.cls` files; errors where there are none."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import datasets
import pytest
from PIL import Image

from ldm.config.data import DataConfig
from ldm.data.broken import UnreadableError
from ldm.data.loader import BatchShare, TrainingData
from ldm.data.scenes import ScenesConfig, ScenesDataset, make_scene
from ldm.data.sources import IndexedSource, open_source
from ldm.data.streaming import StreamData
from ldm.errors import UserError

ANIMALS = ("zebra", "ant", "bee", "ant")
BY_NAME = [2, 0, 1, 0]  # in alphabetical order


def image() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, "PNG")
    return buffer.getvalue()


def opened(path: Path, class_field: str | None = None) -> IndexedSource:
    source = open_source(str(path), DataConfig(size=16, class_field=class_field))
    assert isinstance(source, IndexedSource)
    return source


def labels(source: IndexedSource) -> list[int]:
    return [source.label(index) for index in range(len(source))]


def with_metadata(folder: Path, rows: list[dict[str, object]]) -> Path:
    folder.mkdir()
    lines = []
    for number, row in enumerate(rows):
        (folder / f"{number}.png").write_bytes(image())
        lines.append(json.dumps({"file_name": f"{number}.png", **row}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def test_a_column_of_metadata_holds_names_or_numbers(tmp_path: Path) -> None:
    named = opened(with_metadata(tmp_path / "a", [{"label": name} for name in ANIMALS]))
    assert labels(named) == BY_NAME
    assert named.class_names == ("ant", "bee", "zebra")
    numbered = opened(with_metadata(tmp_path / "b", [{"kind": number} for number in (5, 0, 2)]), "kind")
    assert labels(numbered) == [5, 0, 2]
    assert numbered.class_names == ()
    with pytest.raises(UserError, match=r"has no field 'sort' \(data.class_field\), only file_name, kind"):
        opened(tmp_path / "b", "sort")
    with pytest.raises(UserError, match=r"has no classes: set data.class_field"):
        opened(tmp_path / "b").label(0)


def test_a_sample_without_class_is_broken(tmp_path: Path) -> None:
    source = opened(with_metadata(tmp_path / "a", [{"label": "ant"}, {"label": None}, {"label": "bee"}]))
    with pytest.raises(UnreadableError, match=r"1.png cannot be read: it has no class"):
        source.label(1)
    batch = TrainingData(source, DataConfig(size=16), BatchShare(6), 0, classes=True)[1, 0]
    assert {broken.name for broken in batch.broken} == {"1.png"}
    assert set(batch.labels) == {0, 1}
    assert [source.label(index) for index in batch.indices] == batch.labels


def test_folders_are_classes(tmp_path: Path) -> None:
    for name in (*ANIMALS[:3], "bee/young"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.png").write_bytes(image())
    source = opened(tmp_path)
    assert labels(source) == [0, 1, 1, 2]
    assert source.class_names == ("ant", "bee", "zebra")
    (tmp_path / "alone.png").write_bytes(image())
    with pytest.raises(UserError, match=r"has no classes"):
        opened(tmp_path).label(0)
    with pytest.raises(UserError, match=r"the image alone.png is in no folder of a class"):
        opened(tmp_path, "folder")


def test_a_column_of_a_table_holds_names_numbers_or_class_labels(tmp_path: Path) -> None:
    images = [{"bytes": image(), "path": None}] * 4
    own = datasets.Features({"image": datasets.Image(), "animal": datasets.ClassLabel(names=["zebra", "bee", "ant"])})
    table = datasets.Dataset.from_dict({"image": images, "animal": [0, 2, -1, 2]}, features=own)
    table.to_parquet(tmp_path / "own.parquet")
    source = opened(tmp_path / "own.parquet")
    assert source.class_names == ("zebra", "bee", "ant")
    assert [source.label(index) for index in (0, 1, 3)] == [0, 2, 2]
    with pytest.raises(UnreadableError, match="row 2 cannot be read: its class -1 is negative"):
        source.label(2)
    plain = datasets.Features({"image": datasets.Image(), "name": datasets.Value("string")})
    datasets.Dataset.from_dict({"image": images, "name": list(ANIMALS)}, features=plain).to_parquet(
        tmp_path / "n.parquet"
    )
    assert labels(opened(tmp_path / "n.parquet", "name")) == BY_NAME


def test_shards_hold_classes_in_cls_or_json_members(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for number in range(4):
            members = {
                "png": image(),
                "cls": str(number).encode(),
                "json": json.dumps({"a": {"b": 9 - number}}).encode(),
            }
            for suffix, content in members.items() if number < 3 else [("png", image())]:
                info = tarfile.TarInfo(f"{number}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    for field, expected in ((None, [0, 1, 2]), ("a.b", [9, 8, 7])):
        config = DataConfig(size=16, class_field=field)
        shards = open_source(str(tmp_path / "0.tar"), config)
        packed = list(shards.spread(4))
        assert [shards.label(each) for each in packed[:3]] == expected
        with pytest.raises(UnreadableError, match=r"0.tar:3 cannot be read: it has no class"):
            shards.label(packed[3])
        held = shards.preview(4)
        assert [held.label(index) for index in range(3)] == expected
        batch = next(iter(StreamData(shards, config, BatchShare(4), 0, 1, 1, classes=True)))
        assert set(batch.labels) <= set(expected)
        assert len(batch.labels) == 4


def test_the_class_of_a_scene_is_its_first_thing(tmp_path: Path) -> None:
    config = ScenesConfig(num=20, concepts=12)
    source = ScenesDataset(config, 16, cache=tmp_path)
    firsts = [make_scene(0, index, "train", 12).labels()[0] for index in range(20)]
    assert [source.class_names[label] for label in labels(source)] == firsts
    assert len(source.class_names) == 12
    (source.folder / "labels.npy").unlink()  # as in a cache of an older version
    assert labels(ScenesDataset(config, 16, cache=tmp_path)) == labels(source)
    assert (source.folder / "labels.npy").is_file()
