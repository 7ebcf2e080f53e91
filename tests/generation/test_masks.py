"""Masks: one rule for files, images and arrays. White or opaque strokes are regenerated."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.errors import UserError, UserNote
from ldm.generation.masks import as_mask, read_mask, warn_of_constant
from ldm.generation.request import Request

STROKE = np.zeros((4, 6), dtype=bool)
STROKE[1:3, 2:5] = True
GREY = (STROKE * 255).astype(np.uint8)
IMAGE = Image.new("RGB", (6, 4))


def layer(colour: int, rest: int = 0, alpha: np.ndarray = GREY) -> Image.Image:
    """A layer with strokes of a colour, and another colour elsewhere."""
    values = np.where(STROKE, colour, rest).astype(np.uint8)
    return Image.fromarray(np.stack([values, values, values, alpha], axis=-1), "RGBA")


def palette() -> Image.Image:
    image = Image.fromarray(STROKE.astype(np.uint8), "P")
    image.putpalette([255, 255, 255, 255, 255, 255])
    image.info["transparency"] = 0
    return image


KINDS = {
    "grey": Image.fromarray(GREY),
    "of zeros and ones": Image.fromarray(STROKE.astype(np.uint8)),
    "one bit": Image.fromarray(STROKE),
    "16 bits": Image.fromarray((STROKE * 65535).astype(np.uint16)),
    "32 bits": Image.fromarray((STROKE * 255).astype(np.int32)),
    "floating-point": Image.fromarray(STROKE.astype(np.float32)),
    "RGB": Image.fromarray(np.stack([GREY] * 3, axis=-1)),
    "white strokes on a transparent layer": layer(255),
    "white strokes on a layer of transparent white": layer(255, 255),
    "red strokes on a transparent layer": Image.fromarray(np.stack([GREY, 0 * GREY, 0 * GREY, GREY], axis=-1), "RGBA"),
    "opaque with an alpha channel": layer(255, 0, np.full_like(GREY, 255)),
    "grey and alpha": Image.fromarray(np.stack([GREY, GREY], axis=-1), "LA"),
    "a palette with a transparent colour": palette(),
    "a boolean array": STROKE,
    "an array of floats": STROKE.astype(np.float64),
    "an array of bytes": GREY,
    "an array with a channel": GREY[..., None],
    "a batch of one": STROKE[None],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_mask_means_the_same_strokes(kind: str) -> None:
    mask = as_mask(KINDS[kind])
    assert mask.mode == "L"
    assert np.array_equal(np.asarray(mask), GREY)
    assert np.array_equal(np.asarray(Request(image=IMAGE, mask=KINDS[kind]).mask), GREY)


@pytest.mark.parametrize("kind", ["white strokes on a transparent layer", "of zeros and ones", "16 bits", "grey"])
def test_a_file_is_read_as_the_image_is(kind: str, tmp_path: Path) -> None:
    KINDS[kind].save(tmp_path / "mask.png")
    assert np.array_equal(np.asarray(read_mask(tmp_path / "mask.png")), GREY)


def test_black_strokes_on_a_transparent_layer_are_regenerated_with_a_warning() -> None:
    with pytest.warns(UserNote, match="black strokes on a transparent layer"):
        assert np.array_equal(np.asarray(as_mask(layer(0))), GREY)


def test_a_mask_whose_colours_contradict_its_alpha_channel_is_an_error() -> None:
    with pytest.raises(UserError, match="ambiguous: its alpha channel and its colours disagree"):
        as_mask(layer(0, 255))


@pytest.mark.parametrize("values", [GREY.astype(np.float32) * 2, -STROKE.astype(int), np.full((4, 6), np.nan)])
def test_values_out_of_range_are_an_error(values: np.ndarray) -> None:
    with pytest.raises(UserError, match="the mask has values from"):
        as_mask(values)


def test_a_mask_of_the_images_shape_is_scaled_to_it_and_of_another_shape_is_an_error() -> None:
    mask = Request(image=Image.new("RGB", (12, 8)), mask=Image.fromarray(GREY)).mask
    assert mask is not None
    assert mask.size == (12, 8)
    assert np.asarray(mask)[3:5, 5:9].min() == 255
    with pytest.raises(UserError, match="the mask is 6x4, the image 6x6"):
        Request(image=Image.new("RGB", (6, 6)), mask=Image.fromarray(GREY))


@pytest.mark.parametrize(("value", "message"), [(0, "regenerates nothing"), (255, "regenerates the whole image")])
def test_a_mask_of_one_value_is_a_warning(value: int, message: str) -> None:
    with pytest.warns(UserNote, match=message):
        warn_of_constant(as_mask(np.full((4, 6), value, dtype=np.uint8)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_constant(Image.fromarray(GREY))
