"""Members of shards are grouped to samples by the name before the last extensions."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.config.data import DataConfig
from ldm.data.shard_names import split_name
from ldm.data.sources import Source, open_source
from ldm.errors import UserError


def png(value: int, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (4, 4), (value,) * 3 if mode == "RGB" else value).save(buffer, "PNG")
    return buffer.getvalue()


def opened(path: Path, members: dict[str, bytes]) -> Source:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return open_source(str(path), DataConfig())


@pytest.mark.parametrize(
    ("name", "key", "suffix"),
    [
        ("photo.png", "photo", "png"),
        ("photo.v0.final.png", "photo.v0.final", "png"),
        ("photo.v0.final.txt", "photo.v0.final", "txt"),
        ("photo.v0.map.png", "photo.v0", "map.png"),
        ("a.b/1.5.seg.PNG", "a.b/1.5", "seg.PNG"),
        ("000.input.png", "000", "input.png"),
        ("IMG.0001.jpg", "IMG.0001", "jpg"),
        ("map.png", "map", "png"),
        ("__meta__/x.png", None, None),
        ("dir/.hidden.png", None, None),
        ("README", None, None),
    ],
)
def test_the_key_ends_before_the_last_extensions(name: str, key: str | None, suffix: str | None) -> None:
    assert split_name(name) == (key, suffix)


def test_names_with_dots_are_samples_of_their_own_with_their_captions_and_maps(tmp_path: Path) -> None:
    members = {}
    for number in range(16):
        name = f"folder.d/photo.v{number}.final"
        members |= {f"{name}.map.png": png(number, "L"), f"{name}.png": png(number), f"{name}.txt": b"%d" % number}
    source = opened(tmp_path / "0.tar", members)
    items = list(source.scan(16))
    assert len(source) == len(items) == 16
    assert [source.captions(item) for item in items] == [[str(number)] for number in range(16)]
    assert [int(np.asarray(source.image(item))[0, 0, 0]) for item in items] == list(range(16))
    assert [int(np.asarray(source.map(item))[0, 0]) for item in items] == list(range(16))


def test_an_image_without_a_role_comes_before_those_with_one(tmp_path: Path) -> None:
    source = opened(tmp_path / "0.tar", {"a.seg.png": png(7, "L"), "a.txt": b"a", "a.webp": png(9)})
    [item] = source.scan(1)
    assert np.asarray(source.image(item))[0, 0].tolist() == [9, 9, 9]


def test_an_index_that_knows_fewer_samples_than_a_shard_holds_is_an_error(tmp_path: Path) -> None:
    content = {"shardlist": [{"url": "0.tar", "nsamples": 1}]}
    (tmp_path / "index.json").write_text(json.dumps(content))
    source = opened(tmp_path / "0.tar", {"a.v0.png": png(0), "a.v1.png": png(1)})
    with pytest.raises(UserError, match=r"holds more than the 1 samples that index\.json next to it states: delete"):
        list(source.read(source.blocks(1)[0]))
