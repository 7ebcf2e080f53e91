"""Files are whole or not there, and a tree of tensors comes back as it was."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from ldm import config
from ldm.data.sources import open_source
from ldm.errors import UserError
from ldm.storage import store


def test_tensors_come_back_bit_by_bit_with_type_and_shape(tmp_path: Path) -> None:
    tensors = {
        "half": torch.randn(3, 4).half(),
        "scalar": torch.tensor(7),
        "strided": torch.randn(4, 6)[:, ::2],
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "empty": torch.zeros(0, 3),
    }
    store.save_tensors(tmp_path / "a.safetensors", tensors, {"format": "pt"})
    loaded = store.load_tensors(tmp_path / "a.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    store.save_tensors(tmp_path / "a.safetensors", {"whole": whole, "again": whole, "part": whole[2:4]})
    loaded = store.load_tensors(tmp_path / "a.safetensors")
    assert [loaded[name].tolist() for name in ("whole", "again", "part")] == [[*range(6)], [*range(6)], [2, 3]]


def test_the_state_of_an_optimizer_comes_back_equal_in_values_and_types(tmp_path: Path) -> None:
    network = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, betas=(0.5, 0.9), fused=True)
    network(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    tree = {"optimizer": optimizer.state_dict(), "scaler": None, "step": 3, "list": [1.5, True, "x", (None, [])]}
    store.save_tree(tmp_path / "state", tree)
    loaded = store.load_tree(tmp_path / "state")
    _assert_same(loaded, tree)
    torch.optim.AdamW(network.parameters()).load_state_dict(loaded["optimizer"])


def _assert_same(made: object, expected: object) -> None:
    assert type(made) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert isinstance(made, torch.Tensor)
        assert made.dtype == expected.dtype
        assert torch.equal(made, expected)
    elif isinstance(expected, dict):
        assert isinstance(made, dict)
        assert list(made) == list(expected)
        for key, value in expected.items():
            _assert_same(made[key], value)
    elif isinstance(expected, list | tuple):
        assert isinstance(made, list | tuple)
        assert len(made) == len(expected)
        for one, other in zip(made, expected, strict=True):
            _assert_same(one, other)
    else:
        assert made == expected


def test_a_failed_write_leaves_only_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    store.save_json(path, {"old": 1})

    def fail(work: Path) -> None:
        work.write_text("half of it")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        store.write(path, fail)
    assert store.load_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_cut_off_file_is_an_error_of_one_line_that_names_it(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "weights.safetensors"
    store.save_tensors(path, {"a": torch.randn(10, 10), "b": torch.randn(3)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"weights\.safetensors") as raised:
        store.load_tensors(path)
    assert "\n" not in str(raised.value)


def test_missing_and_damaged_files_are_errors_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"half": ')
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "noise.safetensors").write_bytes(bytes(range(256)) * 8)
    for name, load in (
        ("none.json", store.load_json),
        ("bad.json", store.load_json),
        ("binary.json", store.load_json),
        ("none.safetensors", store.load_tensors),
        ("noise.safetensors", store.load_tensors),
    ):
        with pytest.raises(UserError, match=name) as raised:
            load(tmp_path / name)
        assert "\n" not in str(raised.value)


def test_a_tree_whose_files_do_not_belong_together_is_an_error(tmp_path: Path) -> None:
    store.save_tree(tmp_path / "one", {"a": torch.zeros(1), "b": torch.zeros(1)})
    store.save_tree(tmp_path / "two", {"a": torch.zeros(1)})
    (tmp_path / "two" / "tree.json").write_text((tmp_path / "one" / "tree.json").read_text())
    with pytest.raises(UserError, match="damaged"):
        store.load_tree(tmp_path / "two")


def test_what_is_neither_tensor_nor_plain_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="cannot be saved"):
        store.save_tree(tmp_path / "state", {"a": tmp_path})


@pytest.fixture
def umask() -> Iterator[Callable[[int], None]]:
    before = os.umask(0)
    os.umask(before)
    yield lambda mask: os.umask(mask) and None
    os.umask(before)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_permissions_of_every_written_file_follow_the_umask(
    tmp_path: Path, umask: Callable[[int], None], mask: int, mode: int
) -> None:
    umask(mask)
    tree = {"weights": torch.zeros(2), "step": 1}
    for folder in (tmp_path, tmp_path / "again", tmp_path / "again"):  # new files, and replaced ones
        store.save_tensors(folder / "a.safetensors", {"a": torch.zeros(1)})
        store.save_json(folder / "a.json", {})
        store.save_text(folder / "a.txt", "")
        store.save_tree(folder / "tree", tree)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()} == {mode}


def test_rendered_scenes_are_readable_by_all_as_the_umask_says(
    tmp_path: Path, umask: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LDM_CACHE", str(tmp_path / "cache"))
    umask(0o022)
    options = ["data.scenes.num=2", "data.scenes.concepts=2", "data.size=16"]
    open_source("scenes", config.load("tiny", options).data)
    modes = {(path.is_dir(), path.stat().st_mode & 0o777) for path in (tmp_path / "cache").rglob("*")}
    assert modes == {(True, 0o755), (False, 0o644)}


AS_ANOTHER_USER = """
import os, sys
from pathlib import Path
from ldm.errors import UserError
from ldm.storage import store
os.setuid(65534)
for load in (store.load_tensors, store.load_metadata, store.load_text, store.load_json):
    try:
        load(Path(sys.argv[1]))
    except UserError as error:
        print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user; run as root")
def test_a_missing_permission_is_named_as_such() -> None:
    with tempfile.TemporaryDirectory() as folder:  # whose parents others may enter, unlike tmp_path's
        Path(folder).chmod(0o755)
        path = Path(folder) / "a.safetensors"
        store.save_tensors(path, {"a": torch.zeros(1)})
        path.chmod(0o600)
        done = subprocess.run([sys.executable, "-c", AS_ANOTHER_USER, path], capture_output=True, text=True, check=True)
    assert done.stdout.count(f"no permission to read {path} (-rw-------, user 0)") == 4
