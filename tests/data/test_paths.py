"""Paths of data: any name of a file or folder that exists is that file or folder; links to folders are followed."""

import json
import shutil
import tarfile
import warnings
from pathlib import Path

import pytest
from PIL import Image

from ldm.config.data import DataConfig
from ldm.data.files import is_remote
from ldm.data.sources import Source, open_source
from ldm.errors import UserNote

NAMES = ["v[1]", "my [data]", "set?", "star*", "x::y", "a{b,c}", "{0..1}", "s3:", "100%", "shards.tar", "x.parquet"]
RED = (255, 0, 0)


def image(path: Path, colour: tuple[int, int, int] = RED) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(path)


def opened(path: Path | str) -> Source:
    return open_source(str(path), DataConfig())


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_name_is_read_with_its_metadata(name: str, tmp_path: Path) -> None:
    for folder, text in ((name, "right"), ("v1", "wrong"), ("setx", "wrong"), ("starx", "wrong"), ("ab", "wrong")):
        image(tmp_path / folder / "0.png")
        row = {"file_name": "0.png", "text": text}
        (tmp_path / folder / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    for data in (tmp_path / name, f"{tmp_path / name}/"):
        assert opened(data).captions(0) == ["right"]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_name_is_read_with_its_shards_and_parquet_files(name: str, tmp_path: Path) -> None:
    from datasets import Dataset
    from datasets import Image as ImageFeature

    image(tmp_path / "0.png")
    folder = tmp_path / name
    folder.mkdir()
    table = Dataset.from_dict({"image": [str(tmp_path / "0.png")], "text": ["right"]})
    table.cast_column("image", ImageFeature()).to_parquet(tmp_path / "made.parquet")
    shutil.copy(tmp_path / "made.parquet", folder / "[0].parquet")
    assert opened(folder).captions(0) == opened(folder / "[0].parquet").captions(0) == ["right"]
    (folder / "[0].parquet").unlink()
    for shard in ("0.tar", "1.tar", "{0..1}.tar"):
        with tarfile.open(folder / shard, "w") as archive:
            archive.add(tmp_path / "0.png", "0.png")
    assert [len(opened(path)) for path in (folder, folder / "{0..1}.tar")] == [3, 1]
    (folder / "{0..1}.tar").unlink()
    assert len(opened(folder / "{0..1}.tar")) == 2


def test_a_local_path_that_looks_like_a_url_is_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image(tmp_path / "http:" / "a" / "0.png")
    assert not is_remote("http://a")
    assert len(opened("http://a")) == 1
    assert is_remote("http://b")


def test_links_to_folders_are_followed_once_and_reported(tmp_path: Path) -> None:
    data = tmp_path / "data"
    image(data / "real" / "0.png")
    image(tmp_path / "disk" / "deep" / "1.png")
    (data / "linked").symlink_to(tmp_path / "disk")
    (data / "real" / "loop").symlink_to(data)
    (data / "up").symlink_to(tmp_path)
    (data / "again").symlink_to(data / "real")
    (tmp_path / "disk" / "inner").symlink_to(tmp_path / "disk" / "deep")
    (data / "self").symlink_to(data / "self")
    with pytest.warns(UserNote, match=r"followed 1 link to a folder \(linked\); ignored 4 links .* read already"):
        source = opened(data)
    assert [source.name_of(i) for i in range(len(source))] == ["linked/deep/1.png", "real/0.png"]
    assert source.captions(0) == [""]


def test_a_folder_without_links_gives_no_note(tmp_path: Path) -> None:
    image(tmp_path / "a" / "0.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(opened(tmp_path)) == 1


def test_data_may_be_a_link_itself(tmp_path: Path) -> None:
    image(tmp_path / "real" / "0.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert len(opened(tmp_path / "link")) == 1
