"""`ldm generate` through its function: prompts, files, PNG metadata, and errors before any work."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import ldm
from ldm.cli import generate as command
from ldm.cli.generate import generate
from ldm.cli.options import options
from ldm.diffusion.grids import SPACINGS
from ldm.errors import UserError
from ldm.generation.option import Option
from ldm.generation.quality import complete
from ldm.generation.request import Request
from ldm.generation.text_to_image import TextToImage
from ldm.registry import SAMPLERS


class FakePipe:
    """Generates flat images whose red value is the seed, and keeps the request."""

    request: Any = None

    @classmethod
    def from_pretrained(
        cls, path: str, dtype: Any, device: str | None, tile: int | None, *, compiled: bool, vae: str | None
    ) -> FakePipe:
        cls.loaded = (path, str(dtype), device, tile, compiled)
        return cls()

    def resolve(self, request: Any) -> Any:
        return complete(request, None)

    def size(self, request: Any) -> tuple[int, int]:
        return request.size or (16, 16)

    def generate(self, request: Any, latents: Any, progress: Any, numbers: Iterable[int]) -> Iterator[Image.Image]:
        FakePipe.request = request
        for number in numbers:
            _, seed = request.images[number]
            yield Image.new("RGB", self.size(request), (seed, 0, 0))


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ldm.generation.TextToImage", FakePipe, raising=False)
    monkeypatch.chdir(tmp_path)


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_image_suffix_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate(["a dog"], out=tmp_path / "x.png")
    assert written(tmp_path) == ["x.png"]
    assert capsys.readouterr().out.split() == [str(tmp_path / "x.png")]


def test_several_images_number_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate(["a dog", "a cat"], num_images=2, seed=40, out=tmp_path / "x.jpg")
    assert written(tmp_path) == ["x-0.jpg", "x-1.jpg", "x-2.jpg", "x-3.jpg"]
    assert len(capsys.readouterr().out.split()) == 4


def test_anything_else_is_a_folder_named_after_the_prompts(tmp_path: Path) -> None:
    generate(["A dog, playing a trumpet!", "..."], num_images=2, out=tmp_path / "new" / "folder")
    assert written(tmp_path / "new" / "folder") == [
        "a-dog-playing-a-trumpet-0.png",
        "a-dog-playing-a-trumpet-1.png",
        "image-2.png",
        "image-3.png",
    ]


def test_png_metadata_records_the_parameters(tmp_path: Path) -> None:
    generate(
        ["a chien \N{DOG FACE}"],
        negative_prompt="blurry",
        num_images=2,
        seed=7,
        guidance_scale=2.5,
        num_inference_steps=9,
        out=tmp_path / "x.png",
    )
    text = Image.open(tmp_path / "x-1.png").text  # type: ignore[attr-defined]
    assert (text["prompt"], text["negative_prompt"]) == ("a chien \N{DOG FACE}", "blurry")
    assert text["parameters"] == (
        "a chien \N{DOG FACE}\nNegative prompt: blurry\n"
        "Steps: 9, Sampler: DDIM, CFG scale: 2.5, Seed: 8, Size: 16x16, Model: emoji"
    )
    assert json.loads(text["ldm"]) == {
        "prompt": "a chien \N{DOG FACE}",
        "negative_prompt": "blurry",
        "steps": 9,
        "sampler": "ddim",
        "eta": 0.0,
        "guidance_scale": 2.5,
        "model": "emoji",
        "size": "16x16",
        "ldm_version": ldm.__version__,
        "seed": 8,
    }


def test_options_reach_the_request_and_the_loader(tmp_path: Path) -> None:
    place = {"device": "cpu", "dtype": "bfloat16", "tile": 64}
    generate(["a"], model="m", size="32x16", sampler="ddpm", out=tmp_path / "x.png", **place)
    assert FakePipe.loaded == ("m", "torch.bfloat16", "cpu", 64, False)
    assert (FakePipe.request.size, FakePipe.request.sampler, FakePipe.request.eta) == ((32, 16), "ddpm", 1.0)
    facts = json.loads(Image.open(tmp_path / "x.png").text["ldm"])  # type: ignore[attr-defined]
    assert (facts["eta"], facts["size"], facts["tile"]) == (1.0, "32x16", 64)


def test_levels_reach_the_request_and_the_file(tmp_path: Path) -> None:
    generate(["a"], spacing="karras", sampler="heun", out=tmp_path / "x.png")
    assert (FakePipe.request.spacing, FakePipe.request.timesteps) == ("karras", None)
    facts = json.loads(Image.open(tmp_path / "x.png").text["ldm"])  # type: ignore[attr-defined]
    assert (facts["spacing"], facts["steps"], "eta" in facts, "timesteps" in facts) == ("karras", 30, False, False)
    generate(["a"], timesteps="999,749.5,3", out=tmp_path / "y.png")
    assert FakePipe.request.timesteps == (999, 749.5, 3)
    facts = json.loads(Image.open(tmp_path / "y.png").text["ldm"])  # type: ignore[attr-defined]
    assert (facts["timesteps"], facts["steps"], "spacing" in facts) == ([999, 749.5, 3], 3, False)


@pytest.mark.parametrize(
    ("option", "names"),
    [("sampler", SAMPLERS), ("spacing", SPACINGS)],
)
def test_the_help_lists_every_name(option: str, names: Iterable[str]) -> None:
    help_text = options()[option][0].help
    listed = help_text.partition(".")[0].replace(" or ", ", ").split(", ")
    assert listed == list(names)


def test_prompts_come_from_a_files_lines_too(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a dog\n\n  a cat \n")
    generate(["first", "@prompts.txt"], out=tmp_path / "out")
    assert FakePipe.request.prompts == ("first", "a dog", "a cat")


def test_a_grid_has_a_row_for_each_prompt(tmp_path: Path) -> None:
    generate(["a", "b"], num_images=3, seed=50, grid=True, out=tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.size == (3 * 18 - 2, 2 * 18 - 2)
    assert [sheet.getpixel((18 * column + 5, 18 + 5)) for column in range(3)] == [(53 + i, 0, 0) for i in range(3)]
    assert sheet.text["prompt"] == "a\nb"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("count", "columns", "rows"), [(7, 3, 3), (24, 6, 4), (12, 4, 3), (1, 1, 1)])
def test_a_grid_of_one_image_a_prompt_is_as_square_as_fills_it(
    tmp_path: Path, count: int, columns: int, rows: int
) -> None:
    generate(["a"] * count, grid=True, out=tmp_path / "folder")
    assert Image.open(tmp_path / "folder" / "grid.png").size == (columns * 18 - 2, rows * 18 - 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": ["@missing.txt"]}, "cannot read missing.txt: No such file"),
        ({"prompts": ["@empty.txt"]}, "empty.txt has no prompts"),
        ({"prompts": ["@binary.txt"]}, "binary.txt is not in UTF-8"),
        ({"out": Path("no/such/x.png")}, "cannot write to no/such: No such file or directory"),
        ({"out": Path("empty.txt/x.png")}, "cannot write to empty.txt: Not a directory"),
        ({"out": Path("empty.txt")}, ".txt is not supported: use .png"),
        ({"out": Path("folder.png")}, "cannot write folder.png: it is a folder"),
        ({"size": "64"}, "--size 64: give width and height such as 96x64"),
        ({"size": "-8x8"}, "--size -8x8"),
        ({"timesteps": "999,x"}, "--timesteps 999,x: give numbers such as 999,749,499,249"),
        ({"timesteps": "1,2"}, "timesteps 1, 2: give at least one, in decreasing order"),
        ({"spacing": "karas"}, "unknown spacing 'karas'"),
        ({"dtype": "int8"}, "--dtype int8: give float32, bfloat16, float16"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"guidance_scale": float("nan")}, "guidance scale nan"),
    ],
)
def test_errors_come_in_one_line_before_the_model_is_loaded(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakePipe, "from_pretrained", lambda *_, **__: pytest.fail("loaded the model"))
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\xfa")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError) as error:
        generate(**({"prompts": ["a dog"], "out": tmp_path / "x.png"} | options))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bar_is_shown_on_a_terminal_only(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with command.progress_bar() as progress:
        assert progress is None
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with command.progress_bar() as progress:
        assert progress is not None
        progress(1, 2)
        progress(2, 2)
    assert "2/2" in capsys.readouterr().err


def test_importing_the_command_imports_nothing_heavy() -> None:
    code = "import ldm.cli.generate, sys; print(*sorted({'torch', 'numpy', 'PIL', 'rich.progress'} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=command_root()
    )
    assert result.stdout.strip() == ""


def command_root() -> Path:
    return Path(ldm.__file__).parent.parent


def test_the_fields_of_a_request_are_options_of_the_command_and_keywords_of_the_pipeline() -> None:
    given = set(inspect.signature(generate).parameters)
    assert {name for name, option in declared().items() if option.type is not None} <= given
    keywords = inspect.signature(TextToImage.__call__).parameters
    assert set(keywords) == {"self", "prompt", "latents", "progress"} | (set(declared()) - {"prompts"})
    assert all(keywords[each.name].default == each.default for each in fields(Request) if each.name != "prompts")
    assert all(option.help.endswith(".") for option in declared().values())


def declared() -> dict[str, Option]:
    return {each.name: each.metadata["option"] for each in fields(Request)}
