"""Scenes in files: the same bytes for any number of processes, readable by others, never overwriting files."""

from __future__ import annotations

import json
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ldm.cli import data as command
from ldm.data.scenes import Scene, ScenesConfig, ScenesDataset, make_scene, render, write_folder, write_webdataset
from ldm.errors import UserError

CONCEPTS = 12


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_one_process_and_two_write_the_same_bytes(tmp_path):
    for processes in (1, 2):
        write_folder(tmp_path / f"folder{processes}", 70, 16, processes=processes, concepts=CONCEPTS)
    assert contents(tmp_path / "folder1") == contents(tmp_path / "folder2")


def test_webdataset_shards_are_the_same_bytes_each_time_and_hold_the_scenes(tmp_path):
    for name in ("one", "other"):
        write_webdataset(tmp_path / name, 5, 16, seed=1, processes=1, concepts=CONCEPTS)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")
    with tarfile.open(tmp_path / "one" / "000000.tar") as archive:
        assert archive.getnames()[:3] == ["000000.png", "000000.txt", "000000.json"]
        assert len(archive.getnames()) == 15
        record = json.load(archive.extractfile("000004.json"))
    scene = make_scene(1, 4, "train", CONCEPTS)
    assert Scene.from_record(record["record"]) == scene
    assert record["captions"] == scene.captions()


def test_hugging_face_datasets_loads_the_folder(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    write_folder(tmp_path / "scenes", 12, 24, split="test", processes=1, concepts=CONCEPTS)
    table = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "scenes"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(table) == 12
    for index in (0, 11):
        scene = make_scene(0, index, "test", CONCEPTS)
        row = table[index]
        np.testing.assert_array_equal(np.asarray(row["image"]), render(scene, 24))
        assert row["text"] == scene.captions()[0]
        assert row["captions"] == scene.captions()
        assert Scene.from_record(json.loads(row["record"])) == scene


@pytest.mark.parametrize("write", [write_folder, write_webdataset])
def test_a_folder_with_files_is_not_changed(tmp_path, write):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="contains files already"):
        write(tmp_path, 2, 16, concepts=CONCEPTS)
    assert contents(tmp_path) == {"mine.txt": b"keep"}


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file cannot be used as a folder"):
        write_folder(tmp_path / "file", 2, 16, concepts=CONCEPTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num": 0}, "number of scenes is 0"),
        ({"size": 8}, "8 pixels"),
        ({"seed": -1}, "seed -1"),
        ({"split": "validation"}, "validation"),
        ({"concepts": 0}, "number of concepts is 0"),
    ],
)
def test_invalid_arguments_raise_an_error_before_anything_is_written(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        write_folder(tmp_path / "out", **({"num": 2, "size": 16, "concepts": CONCEPTS} | arguments))
    assert not (tmp_path / "out").exists()


def test_the_data_set_holds_the_scenes_and_is_rendered_once(tmp_path, capsys):
    config = ScenesConfig(num=10, seed=2, concepts=CONCEPTS)
    data = ScenesDataset(config, 16, processes=1, cache=tmp_path)
    assert len(data) == 10
    scene = make_scene(2, 7, "train", CONCEPTS)
    np.testing.assert_array_equal(data.image(7), render(scene, 16))
    assert data.captions(7) == scene.captions()
    assert capsys.readouterr().err == "rendering scenes, once: 10\n"
    again = ScenesDataset(config, 16, cache=tmp_path)
    assert capsys.readouterr().err == ""
    np.testing.assert_array_equal(again.image(9), data.image(9))
    assert ScenesDataset(config, 16, "test", processes=1, cache=tmp_path).folder != data.folder


def test_two_threads_that_render_the_same_scenes_both_succeed(tmp_path):
    made: list[ScenesDataset] = []
    config = ScenesConfig(num=24, concepts=CONCEPTS)
    threads = [
        threading.Thread(target=lambda: made.append(ScenesDataset(config, 16, processes=1, cache=tmp_path)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 2
    assert [path.name for path in (tmp_path / "scenes").iterdir()] == [made[0].folder.name]


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_CACHE", str(tmp_path / "elsewhere"))
    data = ScenesDataset(ScenesConfig(num=1, concepts=1), 16, processes=1)
    assert data.folder.parent == tmp_path / "elsewhere" / "scenes"


def test_the_command_writes_either_format(tmp_path):
    options = ["--num", "3", "--size", "16", "--concepts", str(CONCEPTS), "--split", "test"]
    for form, expected in (("folder", "000002.png"), ("webdataset", "000000.tar")):
        result = CliRunner().invoke(command.app, ["scenes", str(tmp_path / form), "--format", form, *options])
        assert result.exit_code == 0, result.output
        assert (tmp_path / form / expected).is_file()
    assert Image.open(tmp_path / "folder" / "000002.png").size == (16, 16)
