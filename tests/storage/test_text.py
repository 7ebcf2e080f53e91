"""Text files of people: Unicode with and without byte order marks; anything else is an error that names the byte."""

from pathlib import Path

import pytest

from ldm import config
from ldm.cli.main import _expand_home
from ldm.cli.output import output_paths
from ldm.data.captions import of_contents
from ldm.errors import UserError
from ldm.generation.option import parse_prompts
from ldm.storage.text import read_text

TEXT = "ein Dackel mit Trompete, größer\nein Apfel"
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]  # Python writes marks for the last three


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_prompts_configurations_and_captions_are_read_without_marks(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(TEXT.encode(encoding))
    assert read_text(path) == TEXT
    assert parse_prompts([f"@{path}"]) == TEXT.splitlines()
    assert of_contents(TEXT.encode(encoding), None, ()) == TEXT.splitlines()
    assert of_contents(None, '{"text": "größer"}'.encode(encoding), ()) == ["größer"]
    yaml = tmp_path / "a.yaml"
    yaml.write_bytes("training:\n  seed: 7  # größer\n".encode(encoding))
    assert config.load(yaml).training.seed == 7


def test_another_encoding_is_an_error_that_names_file_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes("# größer\n".encode("latin-1"))
    for read in (read_text, config.load, lambda path: parse_prompts([f"@{path}"])):
        with pytest.raises(UserError, match=r"a\.yaml is not in UTF-8 \(byte 0xF6 at position 4\): save it as UTF-8"):
            read(path)


def test_a_tilde_that_the_shell_left_alone_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    words = ["~/data", "--out=~/runs", "@~/prompts.txt", "a ~/dog", "--set", "a~/b"]
    expanded = ["/home/me/data", "--out=/home/me/runs", "@/home/me/prompts.txt", "a ~/dog", "--set", "a~/b"]
    assert _expand_home(words) == expanded


@pytest.mark.parametrize("name", ["x.gif", "x.xyz", "x.PDF"])
def test_an_unsupported_suffix_of_out_is_an_error_and_makes_no_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{name[1:]} is not supported: use \.png"):
        output_paths(tmp_path / name, ["a"], 1, False)
    assert not list(tmp_path.iterdir())
    (tmp_path / name).mkdir()
    assert output_paths(tmp_path / name, ["a"], 1, False) == [tmp_path / name / "a-0.png"]


def test_a_folder_with_a_version_in_its_name_is_a_folder(tmp_path: Path) -> None:
    assert output_paths(tmp_path / "v1.5", ["a"], 1, False) == [tmp_path / "v1.5" / "a-0.png"]
