"""The distribution's name, and the commands that install it in messages and pages."""

import re
import subprocess
import tomllib
from pathlib import Path

from ldm.errors import install_extra

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
STRANGER = re.compile(r"pip install (?:-\S+ )*[\"']?ldm(?:\[|[\s\"'`]|$)")  # the package `ldm` of PyPI is not ours


def text_files() -> list[Path]:
    suffixes = {".py", ".md", ".toml", ".yaml", ".ipynb", ".sh"}
    skipped = {".git", ".venv", "venv", "build", "runs"}
    paths = (path for path in ROOT.rglob("*") if path.suffix in suffixes and path.is_file())
    return [path for path in paths if not skipped & set(path.relative_to(ROOT).parts)]


def test_no_file_installs_the_unrelated_package_ldm() -> None:
    for package, strange in (('"ldm[eval]"', True), ("ldm", True), ('"ldm-diffusion[eval]"', False)):
        assert bool(STRANGER.search(f"pip install {package}")) == strange
    for path in text_files():
        assert not STRANGER.search(path.read_text()), path


def test_an_error_names_commands_for_an_index_and_for_a_checkout() -> None:
    assert install_extra("eval") == 'pip install "ldm-diffusion[eval]", or pip install ".[eval]" in a checkout'
    assert PROJECT["project"]["name"] == "ldm-diffusion"
    assert {"deepspeed", "eval", "test", "dev"} <= PROJECT["project"]["optional-dependencies"].keys()


def test_every_package_is_listed() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "--", "*__init__.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    folders = {Path(name).parent.parts for name in tracked if not name.startswith("tests/")}
    packages = {".".join(parts if parts[0] == "ldm" else ("ldm", *parts)) for parts in folders}
    assert packages == set(PROJECT["tool"]["setuptools"]["packages"])
