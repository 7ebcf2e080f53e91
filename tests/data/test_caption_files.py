"""Captions are found under the names that people and tools use; a text model does not train without any."""

import csv
import io
import json
import tarfile
import warnings
from pathlib import Path

import pytest
from PIL import Image

from ldm import config
from ldm.data.missing_captions import require_captions
from ldm.data.sources import Source, open_source
from ldm.errors import UserError, UserNote

TEXTS = {"a": "a red square", "b": "a blue square"}


def images(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, colour in zip(TEXTS, ("red", "blue"), strict=True):
        Image.new("RGB", (8, 8), colour).save(folder / f"{name}.png")
    return folder


def opened(folder: Path | str, *overrides: str) -> Source:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserNote)
        return open_source(str(folder), config.load("tiny", list(overrides)).data)


def captions(source: Source) -> list[str]:
    return [text for item in source.scan(10) for text in source.captions(item)]


@pytest.mark.parametrize("name", ["{}.txt", "{}.caption", "{}.png.txt", "{}.TXT", "{}.Caption", "{}.png.caption"])
def test_a_text_file_of_any_usual_name_has_the_caption(tmp_path: Path, name: str) -> None:
    for image, text in TEXTS.items():
        (images(tmp_path) / name.format(image)).write_text(text)
    assert captions(opened(tmp_path)) == list(TEXTS.values())


@pytest.mark.parametrize(
    "field", ["text", "caption", "captions", "prompt", "description", "TEXT", "Caption", "alt_text", " text"]
)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "sidecar"])
def test_a_field_of_any_usual_name_has_the_caption(tmp_path: Path, field: str, kind: str) -> None:
    images(tmp_path)
    rows = [{"file_name": f"{name}.png", field: text} for name, text in TEXTS.items()]
    if kind == "csv":
        with (tmp_path / "metadata.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["file_name", field])
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    elif kind == "json":
        (tmp_path / "metadata.json").write_text(json.dumps(rows))
    else:
        for name, text in TEXTS.items():
            (tmp_path / f"{name}.json").write_text(json.dumps({"width": 8, field: text}))
    assert captions(opened(tmp_path)) == list(TEXTS.values())


@pytest.mark.parametrize(
    "content", ["file_name, text\na.png, a red square\n", "\ufefffile_name,text\na.png,a red square\n"]
)
def test_spaces_and_byte_order_marks_in_a_header_are_ignored(tmp_path: Path, content: str) -> None:
    (images(tmp_path) / "metadata.csv").write_text(content, encoding="utf-8")
    assert captions(opened(tmp_path)) == ["a red square"]


def test_metadata_in_folders_belongs_to_these_folders_and_other_splits_are_left_out(tmp_path: Path) -> None:
    for split in ("train", "train/more", "test"):
        rows = [{"file_name": f"{name}.png", "text": f"{split} {text}"} for name, text in TEXTS.items()]
        (images(tmp_path / split) / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = opened(tmp_path)
    assert captions(source) == [f"{split} {text}" for split in ("train", "train/more") for text in TEXTS.values()]
    assert [source.image(item).size for item in source.scan(4)] == [(8, 8)] * 4


def test_tables_of_folders_with_different_columns_are_an_error(tmp_path: Path) -> None:
    (images(tmp_path / "a") / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "red"}))
    (images(tmp_path / "b") / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": 7}))
    with pytest.raises(UserError, match=r"a/metadata\.jsonl and b/metadata\.jsonl .* have different columns"):
        opened(tmp_path)


def test_captions_in_shards_may_have_the_suffix_caption(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, text in TEXTS.items():
            image = io.BytesIO()
            Image.new("RGB", (8, 8)).save(image, "PNG")
            for suffix, content in (("png", image.getvalue()), ("caption", text.encode())):
                info = tarfile.TarInfo(f"{name}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    assert captions(opened(tmp_path / "0.tar")) == list(TEXTS.values())


@pytest.mark.parametrize(
    ("file", "content", "cause"),
    [
        ("", "", r"write image\.txt next to image\.png.*other files there: none"),
        ("a.md", "x", r"other files there: 1 \.md"),
        ("a.json", '{"label_text": "x"}', r"the \.json files have no usual field: name theirs in data\.caption_fields"),
        ("captions.csv", "image,label\na.png,x\n", r"captions\.csv is not read: rename it to metadata\.csv"),
        ("metadata.csv", "file_name,label_text\na.png,x\n", r"metadata\.csv has no usual column"),
    ],
)
def test_a_text_model_without_any_caption_is_an_error_that_names_the_cause(
    tmp_path: Path, file: str, content: str, cause: str
) -> None:
    images(tmp_path)
    if file:
        (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=f"none of . images of .* has a caption: .*{cause}"):
        require_captions(opened(tmp_path))


def test_images_without_captions_among_others_are_counted_in_a_note(tmp_path: Path) -> None:
    (images(tmp_path) / "a.txt").write_text("a red square")
    with pytest.warns(UserNote, match=r"1 of 2 images that were checked have no caption, for example b\.png"):
        require_captions(opened(tmp_path))


@pytest.mark.slow
def test_the_command_line_ends_before_training_without_captions(
    tmp_path: Path, tiny_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from running import here

    with pytest.raises(UserError, match="the model is conditioned on text"):
        here(
            "train-unet",
            "tiny",
            "--init",
            tiny_pipeline,
            "--data",
            images(tmp_path / "data"),
            "--out",
            tmp_path / "run",
        )
