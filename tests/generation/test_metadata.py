"""Parameters in PNG metadata, of ldm and of AUTOMATIC1111's webui, are read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.cli.info import info
from ldm.cli.output import save
from ldm.errors import UserError
from ldm.generation import Request
from ldm.generation.metadata import parse_webui, read_parameters, request_from_png

RED = Image.new("RGB", (16, 16), "red")


def test_a_png_gives_back_its_request(tmp_path: Path) -> None:
    facts = {"negative_prompt": "b, c", "steps": 9, "sampler": "ddim", "eta": 0.0, "guidance_scale": 2.5, "seed": 8}
    facts |= {"size": "32x16", "model": "emoji", "dtype": "bfloat16", "guidance_interval": [0.3, 5.0]}
    path = tmp_path / "x.png"
    save(RED, path, "a dog: red, blue", facts, new=False)
    assert request_from_png(path) == Request(
        prompts=("a dog: red, blue",),
        negative_prompt="b, c",
        num_inference_steps=9,
        sampler="ddim",
        eta=0.0,
        guidance_scale=2.5,
        seed=8,
        size=(32, 16),
        dtype=torch.bfloat16,
        guidance_interval=(0.3, 5.0),
    )


def test_metadata_of_earlier_versions_is_read(tmp_path: Path) -> None:
    text = PngInfo()
    text.add_text("prompt", "a dog")
    text.add_text("parameters", json.dumps({"steps": 3, "seed": 1}))
    RED.save(tmp_path / "x.png", pnginfo=text)
    assert request_from_png(tmp_path / "x.png") == Request(prompts=("a dog",), num_inference_steps=3, seed=1)


def test_text_of_the_webui_is_read() -> None:
    text = (
        "a (red:1.2) dog,\nlarge: yes\nNegative prompt: blurry, bad\n"
        'Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 12, Size: 512x768, Model: "a, b", Clip skip: 2'
    )
    assert parse_webui(text) == {
        "prompt": "a (red:1.2) dog,\nlarge: yes",
        "negative_prompt": "blurry, bad",
        "steps": 20,
        "sampler": "euler-ancestral",
        "guidance_scale": 7.5,
        "seed": 12,
        "size": "512x768",
        "model": "a, b",
        "Clip skip": 2,
    }


def test_an_image_without_parameters_is_an_error(tmp_path: Path) -> None:
    RED.save(tmp_path / "x.png")
    with pytest.raises(UserError, match="has no parameters"):
        read_parameters(tmp_path / "x.png")


def test_info_shows_the_parameters_of_a_png(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(RED, tmp_path / "x.png", "a dog", {"steps": 9, "seed": 4}, new=False)
    capsys.readouterr()
    info(str(tmp_path / "x.png"))
    assert capsys.readouterr().out.split("\n")[:3] == ["prompt  a dog", "steps   9", "seed    4"]
