"""Damaged and unusual images are decoded, or skipped by name and replaced."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hostile import encoded, noise, unreadable
from PIL import Image

from ldm.config.data import DataConfig
from ldm.data.broken import UnreadableError
from ldm.data.images import decode, header_size
from ldm.data.loader import BatchShare, TrainingData, make_loader
from ldm.data.sources import IndexedSource, open_source
from ldm.errors import UserError


@pytest.mark.parametrize("name", unreadable())
def test_damaged_files_are_unreadable(name: str, tmp_path: Path) -> None:
    content = unreadable()[name]
    (tmp_path / name).write_bytes(content)
    for given in (content, tmp_path / name):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(UnreadableError, match=r"cannot be read: .") as error:
                decode(given, name)
        assert error.value.broken.name == name
        assert "\n" not in str(error.value)


def test_a_file_that_is_missing_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="No such file"):
        decode(tmp_path / "none.png", "none.png")


def test_sixteen_bits_are_rounded_to_eight() -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    for form in ("PNG", "TIFF"):
        made = np.asarray(decode(encoded(Image.fromarray(ramp), form), "ramp"))
        assert np.array_equal(made[..., 0], (ramp / 257).round().astype(np.uint8))
        assert made.shape == (16, 16, 3)


def test_cmyk_becomes_rgb() -> None:
    flat = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for form in ("JPEG", "TIFF"):
        red = np.asarray(decode(encoded(flat, form), "cmyk")).astype(int)
        assert np.abs(red - (255, 0, 0)).max() <= 3


def test_an_animation_is_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    for form in ("GIF", "WEBP", "PNG", "TIFF"):
        content = encoded(frames[0], form, save_all=True, append_images=frames[1:])
        red = np.asarray(decode(content, form)).astype(int)
        assert np.abs(red - (255, 0, 0)).max() <= 6, form


def test_exif_orientation_is_applied() -> None:
    wide = Image.new("RGB", (40, 20), "white")
    wide.paste("black", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise: left becomes top
    content = encoded(wide, "JPEG", exif=exif.tobytes())
    made = np.asarray(decode(content, "held"))
    assert made.shape == (40, 20, 3)
    assert made[:15].max() < 60 < 200 < made[25:].min()
    assert header_size(content, "held") == (40, 20)
    assert header_size(encoded(wide, "PNG"), "plain") == (20, 40)


def test_a_transparent_palette_becomes_white() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(0, (0, 0, 8, 4))
    made = np.asarray(decode(encoded(image, "PNG", transparency=0), "palette"))
    assert made[:4].min() == 255
    assert made[4:].reshape(-1, 3).tolist() == [[0, 0, 255]] * 32


@pytest.mark.slow
def test_a_large_image_below_the_limit_is_read_without_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = decode(encoded(Image.new("1", (10_000, 9_200)), "PNG"), "large")
    assert made.size == (10_000, 9_200)


class Half(IndexedSource):
    """Images of which those of odd number cannot be read."""

    def __init__(self, broken: Sequence[int]) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 24

    def image(self, index: int) -> np.ndarray:
        if index in self.broken:
            raise UnreadableError(f"{index}.png", "it is odd")
        return np.full((8, 8, 3), index, dtype=np.uint8)

    def captions(self, index: int) -> list[str]:
        return [str(index)]


def batches(broken: Sequence[int], share: BatchShare, start: int = 1, workers: int = 0) -> list:
    data = TrainingData(Half(broken), DataConfig(size=8), share, seed=0)
    return list(make_loader(data, start, 6, workers))


def test_unreadable_samples_are_replaced_alike_for_any_number_of_processes() -> None:
    odd = range(1, 24, 2)
    whole, sound = batches(odd, BatchShare(8)), batches([], BatchShare(8))
    parts = [batches(odd, BatchShare(8, rank, 2), workers=rank) for rank in range(2)]
    for step, batch in enumerate(whole):
        assert not set(batch.indices) & set(odd)
        assert [c for part in parts for c in part[step].captions] == batch.captions == list(map(str, batch.indices))
        pairs = zip(batch.indices, sound[step].indices, strict=True)
        assert all(index == asked for index, asked in pairs if asked not in odd)
        found = {broken.name for broken in batch.broken}
        assert {f"{index}.png" for index in sound[step].indices if index in odd} <= found
        assert sorted(b.name for part in parts for b in part[step].broken) == sorted(b.name for b in batch.broken)
    assert [batch.indices for batch in batches(odd, BatchShare(8), start=4)] == [batch.indices for batch in whole[3:]]


def test_data_without_readable_images_is_an_error() -> None:
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"^100 samples in a row cannot be used: .* it is odd$") as error:
            batches(range(24), BatchShare(8), workers=workers)
        assert "\n" not in str(error.value)


def test_captions_are_read_from_files_beside_images(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d", "e"):
        (tmp_path / f"{name}.png").write_bytes(encoded(noise((8, 8)), "PNG"))
    (tmp_path / "a.txt").write_text("one\n\n two \n", encoding="utf-8-sig")
    (tmp_path / "b.json").write_text(json.dumps({"captions": ["three", "four"], "more": {"short": "five"}}))
    (tmp_path / "c.txt").write_bytes("h\u00fcbsch".encode("latin-1"))
    (tmp_path / "d.json").write_text("[1, 2]")
    source = open_source(str(tmp_path), DataConfig())
    assert [source.captions(index) for index in (0, 1, 4)] == [["one", "two"], ["three", "four"], [""]]
    for index, words in ((2, "c.png cannot be read: its caption is not in UTF-8"), (3, "not an object")):
        with pytest.raises(UnreadableError, match=words):
            source.captions(index)
    fields = open_source(str(tmp_path), DataConfig(caption_fields=("more.short", "captions")))
    assert fields.captions(1) == ["five", "three", "four"]
    with pytest.raises(UnreadableError, match=r"no caption in more\.short, captions"):
        fields.captions(0)


def test_captions_are_read_from_configured_fields(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(noise((8, 8)), "PNG"))
    rows = [{"file_name": "a.png", "long": "a long one", "short": ["s", "t"], "deep": {"er": "d"}, "text": "no"}]
    rows.append({"file_name": "gone.png", "long": None, "short": [], "deep": {"er": None}, "text": ""})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_source(str(tmp_path), DataConfig(caption_fields=("long", "short", "deep.er")))
    assert source.captions(0) == ["a long one", "s", "t", "d"]
    assert source.captions(1) == [""]
    with pytest.raises(UnreadableError, match=r"gone\.png cannot be read: No such file"):
        source.image(1)
    with pytest.raises(UserError, match=r"no field 'lnog' \(data\.caption_fields\), only .*long"):
        open_source(str(tmp_path), DataConfig(caption_fields=("lnog",)))
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,NA\n", encoding="utf-8")
    assert open_source(str(tmp_path), DataConfig()).captions(0) == ["NA"]
