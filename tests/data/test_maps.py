"""Maps of classes: of scenes, and in folders, tables and shards; they are cropped as their images."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.config.data import DataConfig
from ldm.data.images import decode_map, paint
from ldm.data.loader import Batch, BatchShare, TrainingData
from ldm.data.scenes import (
    ScenesConfig,
    ScenesDataset,
    concepts,
    make_scene,
    render_mask,
    write_folder,
    write_webdataset,
)
from ldm.data.scenes.maps import kind_names, kind_of, render_map
from ldm.data.sources import IndexedSource, open_source
from ldm.data.streaming import StreamData
from ldm.errors import UserError

CONCEPTS = 40
KINDS = len(kind_names())
SETTINGS = {"size": 32, "map_classes": KINDS, "scenes": ScenesConfig(num=6, concepts=CONCEPTS)}


def test_every_concept_has_one_kind_and_every_kind_has_concepts() -> None:
    kinds = {concept.name: kind_names()[kind_of(concept.name)] for concept in concepts()}
    assert set(kinds.values()) == set(kind_names()) - {"background", "ground"}
    chosen = {"dog": "animal", "robot": "figure", "trumpet": "instrument", "crown": "hat", "rocket": "vehicle"}
    chosen |= {"apple": "food", "cactus": "plant", "umbrella": "thing"}
    assert {name: kinds[name] for name in chosen} == chosen


def test_the_map_of_a_scene_has_the_kind_of_each_thing_in_its_mask() -> None:
    scenes = [make_scene(0, index, "train", CONCEPTS) for index in range(40)]
    landscapes = [scene for scene in scenes if scene.background.kind == "landscape"]
    assert landscapes
    for scene in scenes[:5] + landscapes[:2]:
        found, mask = render_map(scene, 32), render_mask(scene, 32)
        for number, thing in enumerate(scene.things, 1):
            assert set(found[mask == number].tolist()) <= {kind_of(thing.name)}
        behind = np.where(mask == 0, found, 0)
        horizon = scene.background.horizon if scene.background.kind == "landscape" else 1.0
        rows = (np.arange(32) + 0.5) / 32 >= horizon
        assert np.array_equal(behind, np.where(mask == 0, rows[:, None], False))


def test_maps_of_scenes_are_rendered_on_request(tmp_path: Path) -> None:
    config = ScenesConfig(num=5, concepts=CONCEPTS)
    plain = ScenesDataset(config, 32, processes=1, cache=tmp_path)
    with pytest.raises(UserError, match=r"data\.map_classes"):
        plain.map(0)
    mapped = ScenesDataset(config, 32, processes=1, cache=tmp_path, map_classes=KINDS)
    assert mapped.folder == plain.folder
    assert np.array_equal(mapped.map(3), render_map(make_scene(0, 3, "train", CONCEPTS), 32))
    with pytest.raises(UserError, match=f"maps of scenes have {KINDS} classes.*: background, ground"):
        ScenesDataset(config, 32, processes=1, cache=tmp_path, map_classes=3)


def batch_of(data: Path, **options: Any) -> Batch:
    """The first batch of a folder, or of shards."""
    config = DataConfig(**{"size": 32, "map_classes": KINDS} | options)
    source, share = open_source(str(data), config), BatchShare(4)
    if not source.random_access:
        return next(iter(StreamData(source, config, share, 0, 1, 1)))
    return TrainingData(source, config, share, 0)[1, 0]


def test_maps_written_by_ldm_data_are_read_from_folders_and_shards(tmp_path: Path) -> None:
    for write, name in ((write_folder, "folder"), (write_webdataset, "shards")):
        write(tmp_path / name, 6, 32, processes=1, concepts=CONCEPTS, maps=True)
        batch = batch_of(tmp_path / name)
        assert batch.maps is not None
        for index, found in zip(batch.indices, batch.maps, strict=True):
            assert np.array_equal(found.numpy(), render_map(make_scene(0, index, "train", CONCEPTS), 32))
    with Image.open(tmp_path / "folder" / "000002.map.png") as written:
        assert written.mode == "P"
        assert np.array_equal(np.asarray(written), render_map(make_scene(0, 2, "train", CONCEPTS), 32))
    with tarfile.open(tmp_path / "shards" / "000000.tar") as archive:
        assert archive.getnames()[:4] == ["000000.png", "000000.txt", "000000.json", "000000.map.png"]
    without = batch_of(tmp_path / "shards", map_classes=None)
    assert without.maps is None
    assert without.images is not None  # the map is never taken for the image


def test_a_table_has_maps_in_a_column(tmp_path: Path) -> None:
    import datasets

    write_folder(tmp_path / "scenes", 6, 32, processes=1, concepts=CONCEPTS, maps=True)
    table = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "scenes"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert isinstance(table.features["map"], datasets.Image)
    table.to_parquet(tmp_path / "scenes.parquet")
    batch = batch_of(tmp_path / "scenes.parquet")
    assert batch.maps is not None
    expected = [render_map(make_scene(0, index, "train", CONCEPTS), 32) for index in batch.indices]
    assert np.array_equal(batch.maps.numpy(), np.stack(expected))
    assert batch.images is not None
    assert batch.images.shape == (4, 3, 32, 32)


def bare(folder: Path, classes: np.ndarray, name: str = "a.map.png", **row: str) -> Path:
    """One image that shows its classes in its first channel, and its map."""
    folder.mkdir()
    pixels = np.stack([classes * 20, classes * 0, classes * 0], axis=-1)
    Image.fromarray(pixels).save(folder / "a.png")
    Image.fromarray(classes).save(folder / name)
    if row:
        (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "a", **row}))
    return folder


CLASSES = np.random.default_rng(0).integers(KINDS, size=(24, 40), dtype=np.uint8)


@pytest.mark.parametrize("row", [{}, {"map": "classes.png"}, {"map_file_name": "classes.png"}], ids=str)
def test_a_map_is_beside_its_image_or_named_in_metadata(row: dict[str, str], tmp_path: Path) -> None:
    folder = bare(tmp_path / "data", CLASSES, "classes.png" if row else "a.map.png", **row)
    source = open_source(str(folder), DataConfig())
    assert len(source) == 1 or not row
    assert source.has_maps
    assert np.array_equal(np.asarray(source.map(0)), CLASSES)


def test_a_map_is_cropped_and_flipped_as_its_image(tmp_path: Path) -> None:
    folder = bare(tmp_path / "data", CLASSES)
    batch = batch_of(folder, size=24, random_crop=True, random_flip=True)
    assert batch.images is not None
    assert batch.maps is not None
    shown = ((batch.images[:, 0] + 1) * 127.5 / 20).round()
    assert torch.equal(shown, batch.maps.float())
    assert len({found.numpy().tobytes() for found in batch.maps}) > 2  # they differ
    larger = batch_of(folder, size=48, random_zoom=1.5)
    assert larger.maps is not None
    assert set(larger.maps.unique().tolist()) <= set(np.unique(CLASSES).tolist())  # no class between two others


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: Image.new("RGB", (40, 24)).save(path), "of mode RGB"),
        (lambda path: Image.new("L", (20, 24)).save(path), "its map is 20x24, the image 40x24"),
        (lambda path: Image.new("L", (40, 24), KINDS).save(path), f"has class {KINDS}; data.map_classes is {KINDS}"),
    ],
    ids=["missing", "colours", "size", "class"],
)
def test_the_error_about_an_unusable_map_names_it(change: Any, message: str, tmp_path: Path) -> None:
    folder = bare(tmp_path / "data", CLASSES)
    change(folder / "a.map.png")
    with pytest.raises(UserError, match=rf"a.*png.*{message}"):
        batch_of(folder)


def test_data_without_maps_raises_an_error(tmp_path: Path) -> None:
    class Bare(IndexedSource):
        def __len__(self) -> int:
            return 1

        def image(self, index: int) -> Image.Image:
            raise AssertionError

        captions = image

    with pytest.raises(UserError, match="the data has no maps of classes"):
        TrainingData(Bare(), DataConfig(map_classes=3), BatchShare(1), 0)


def test_painted_maps_keep_their_numbers(tmp_path: Path) -> None:
    numbers = np.arange(256, dtype=np.uint8).reshape(16, 16)
    paint(numbers).save(tmp_path / "map.png")
    assert np.array_equal(np.asarray(decode_map(tmp_path / "map.png", "map.png")), numbers)
