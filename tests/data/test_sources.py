"""Folders of captioned pictures of the kinds that people have."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.config import DataConfig
from ldm.data.pictures import contact_sheet, resize_and_crop, to_bytes, to_rgb, to_tensor
from ldm.data.sources import open_source
from ldm.errors import UserError


def picture(path: Path, colour: tuple[int, ...] = (255, 0, 0)) -> None:
    Image.new("RGB", (12, 8), colour).save(path)


def test_a_folder_with_metadata(tmp_path: Path) -> None:
    rows = []
    for number in range(3):
        picture(tmp_path / f"{number}.png", (number, 0, 0))
        rows.append({"file_name": f"{number}.png", "text": f"picture {number}"})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_source(str(tmp_path), DataConfig())
    assert len(source) == 3
    assert [source.captions(i) for i in range(3)] == [["picture 0"], ["picture 1"], ["picture 2"]]
    assert np.asarray(source.picture(2))[0, 0].tolist() == [2, 0, 0]


def test_a_folder_with_a_text_beside_each_picture(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("a red field\n")
    picture(tmp_path / "b.png")
    source = open_source(str(tmp_path), DataConfig())
    assert [source.captions(i) for i in range(2)] == [["a red field"], [""]]


def test_a_folder_of_bare_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    assert open_source(str(tmp_path), DataConfig()).captions(0) == [""]


def test_a_parquet_file_with_lists_of_captions(tmp_path: Path) -> None:
    from datasets import Dataset
    from datasets import Image as ImageFeature

    picture(tmp_path / "a.png")
    table = Dataset.from_dict({"image": [str(tmp_path / "a.png")], "captions": [["one", "two"]]})
    table.cast_column("image", ImageFeature()).to_parquet(tmp_path / "data.parquet")
    source = open_source(str(tmp_path / "data.parquet"), DataConfig())
    assert source.captions(0) == ["one", "two"]
    assert source.picture(0).size == (12, 8)


def test_what_is_no_data_is_refused_in_one_line(tmp_path: Path) -> None:
    for data, words in (
        (tmp_path / "none", "no data at"),
        (tmp_path, "no pictures in"),
        ("nobody/nothing", "cannot be opened"),
    ):
        with pytest.raises(UserError, match=words) as error:
            open_source(str(data), DataConfig())
        assert "\n" not in str(error.value)


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="picture 0 of the data cannot be read"):
        open_source(str(tmp_path), DataConfig()).picture(0)


def test_transparent_parts_lie_on_white_and_every_mode_becomes_rgb() -> None:
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert np.asarray(to_rgb(clear)).min() == 255
    for mode in ("L", "P", "CMYK", "1", "LA"):
        assert to_rgb(Image.new(mode, (2, 2))).mode == "RGB"


def test_the_shorter_side_is_scaled_and_the_longer_cut_where_asked() -> None:
    ramp = np.zeros((10, 20, 3), dtype=np.uint8)
    ramp[:, 10:] = 200
    wide = Image.fromarray(ramp)
    assert resize_and_crop(wide, 10, at=(0, 0)).max() == 0
    assert resize_and_crop(wide, 10, at=(1, 1)).min() == 200
    assert resize_and_crop(wide, 4).shape == (4, 4, 3)
    assert resize_and_crop(wide, 40).shape == (40, 40, 3)


def test_bytes_survive_the_way_to_numbers_and_back() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    tensor = to_tensor(levels)
    assert (tensor.min(), tensor.max()) == (-1, 1)
    assert np.array_equal(to_bytes(tensor), levels)
    assert to_bytes(tensor * 3).max() == 255


def test_a_contact_sheet_holds_every_picture_in_order() -> None:
    bright = np.stack([np.full((4, 6, 3), level, dtype=np.uint8) for level in (10, 20, 30)])
    sheet = np.asarray(contact_sheet(bright, columns=2, gap=1))
    assert sheet.shape == (9, 13, 3)
    assert (sheet[0, 0, 0], sheet[0, 7, 0], sheet[5, 0, 0], sheet[5, 7, 0]) == (10, 20, 30, 255)
