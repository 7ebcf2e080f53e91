"""Folders and tables of captioned images; cropping and conversion of images."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.config.data import DataConfig
from ldm.data.images import contact_sheet, resize_and_crop, to_bytes, to_rgb, to_tensor
from ldm.data.sources import open_source
from ldm.errors import UserError


def image(path: Path, colour: tuple[int, ...] = (255, 0, 0)) -> None:
    Image.new("RGB", (12, 8), colour).save(path)


def test_a_folder_with_metadata(tmp_path: Path) -> None:
    rows = []
    for number in range(3):
        image(tmp_path / f"{number}.png", (number, 0, 0))
        rows.append({"file_name": f"{number}.png", "text": f"image {number}"})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_source(str(tmp_path), DataConfig())
    assert len(source) == 3
    assert [source.captions(i) for i in range(3)] == [["image 0"], ["image 1"], ["image 2"]]
    assert np.asarray(source.image(2))[0, 0].tolist() == [2, 0, 0]


def test_a_folder_with_a_text_beside_each_image(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("a red field\n")
    image(tmp_path / "b.png")
    source = open_source(str(tmp_path), DataConfig())
    assert [source.captions(i) for i in range(2)] == [["a red field"], [""]]


def test_a_folder_of_bare_images(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    assert open_source(str(tmp_path), DataConfig()).captions(0) == [""]


def test_a_parquet_file_with_lists_of_captions(tmp_path: Path) -> None:
    from datasets import Dataset
    from datasets import Image as ImageFeature

    image(tmp_path / "a.png")
    table = Dataset.from_dict({"image": [str(tmp_path / "a.png")], "captions": [["one", "two"]]})
    table.cast_column("image", ImageFeature()).to_parquet(tmp_path / "data.parquet")
    source = open_source(str(tmp_path / "data.parquet"), DataConfig())
    assert source.captions(0) == ["one", "two"]
    assert source.image(0).size == (12, 8)


def test_data_that_does_not_exist_is_an_error_of_one_line(tmp_path: Path) -> None:
    for data, words in (
        (tmp_path / "none", "no data at"),
        (tmp_path, "no images in"),
        ("nobody/nothing", "cannot be opened"),
    ):
        with pytest.raises(UserError, match=words) as error:
            open_source(str(data), DataConfig())
        assert "\n" not in str(error.value)


def test_transparent_parts_become_white_and_every_mode_rgb() -> None:
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert np.asarray(to_rgb(clear)).min() == 255
    for mode in ("L", "P", "CMYK", "1", "LA"):
        assert to_rgb(Image.new(mode, (2, 2))).mode == "RGB"


def test_images_are_scaled_to_cover_the_size_and_cropped_at_a_place() -> None:
    ramp = np.zeros((10, 20, 3), dtype=np.uint8)
    ramp[:, 10:] = 200
    wide = Image.fromarray(ramp)
    assert resize_and_crop(wide, (10, 10), at=(0, 0)).pixels.max() == 0
    assert resize_and_crop(wide, (10, 10), at=(1, 1)).pixels.min() == 200
    assert resize_and_crop(wide, (4, 4)).pixels.shape == (4, 4, 3)
    assert resize_and_crop(wide, (40, 40)).pixels.shape == (40, 40, 3)
    assert resize_and_crop(wide, (6, 4)).pixels.shape == (6, 4, 3)


@pytest.mark.parametrize("size", [(31, 32), (64, 40), (128, 128)])
@pytest.mark.parametrize("at", [(0.0, 0.0), (0.3, 0.7), (1.0, 1.0)])
def test_cropping_while_resizing_equals_cropping_afterwards(size: tuple[int, int], at: tuple[float, float]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    cut = resize_and_crop(image, size, at, zoom=1.3)
    height, width = cut.resized
    whole = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    top, left = cut.crop
    expected = np.asarray(whole)[top : top + size[0], left : left + size[1]]
    assert np.abs(expected.astype(int) - cut.pixels).max() <= 2
    assert cut.original == (90, 130)


def test_the_crop_of_a_flipped_image_is_flipped() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 40, 3), dtype=np.uint8)
    cut = resize_and_crop(Image.fromarray(noise), (16, 16), at=(0.25, 0.0)).flipped()
    top, left = cut.crop
    assert (top, left) == (0, 18)
    assert np.array_equal(noise[:, ::-1][:, left : left + 16], cut.pixels)


def test_an_extremely_long_image_needs_little_memory() -> None:
    assert resize_and_crop(Image.new("RGB", (60_000, 1)), (512, 512)).pixels.shape == (512, 512, 3)


def test_bytes_are_equal_after_conversion_to_tensors_and_back() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    tensor = to_tensor(levels)
    assert (tensor.min(), tensor.max()) == (-1, 1)
    assert np.array_equal(to_bytes(tensor), levels)
    assert to_bytes(tensor * 3).max() == 255


def test_a_contact_sheet_has_every_image_in_order() -> None:
    bright = np.stack([np.full((4, 6, 3), level, dtype=np.uint8) for level in (10, 20, 30)])
    sheet = np.asarray(contact_sheet(bright, columns=2, gap=1))
    assert sheet.shape == (9, 13, 3)
    assert (sheet[0, 0, 0], sheet[0, 7, 0], sheet[5, 0, 0], sheet[5, 7, 0]) == (10, 20, 30, 255)
