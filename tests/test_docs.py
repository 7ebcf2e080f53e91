"""Every link, image, command and option that the pages name exists."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from ldm.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "weights").rglob("*.md")])
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which names options of the past
LINK = re.compile(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_images_exist(page: Path) -> None:
    for match in LINK.finditer(page.read_text()):
        path, _, anchor = (match[1] or match[2]).partition("#")
        if path.startswith(("http://", "https://")):
            continue
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def test_every_image_is_shown() -> None:
    shown = {Path(match[1] or match[2]).name for page in PAGES for match in LINK.finditer(page.read_text())}
    assert {path.name for path in (ROOT / "docs" / "images").iterdir()} <= shown


def command_lines(text: str) -> Iterator[list[str]]:
    """Words of the `ldm ...` commands in the code blocks of a page."""
    blocks = re.findall(r"^```(?:bash|sh)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    blocks += re.findall(r"^(?: {4}[^\n]*\n)+", text, re.MULTILINE)
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|;|\|", line):
            words = shlex.split(part, comments=True) if part.count('"') % 2 == part.count("'") % 2 == 0 else []
            if "ldm" in words and not set(words) & {"import", "from", "pip", "sbatch"}:
                yield words[words.index("ldm") + 1 :]


@pytest.mark.parametrize("page", CURRENT, ids=name)
def test_commands_and_options_exist(page: Path) -> None:
    for words in command_lines(page.read_text()):
        command: click.Command = typer.main.get_command(app)
        while words and hasattr(command, "commands") and words[0][0] not in "-.":
            assert words[0] in command.commands, f"ldm {' '.join(words)}"
            command = command.commands[words.pop(0)]
        options = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
        for word in words:
            if re.match(r"--[a-z]", word):
                assert word.split("=")[0] in options | {"--help"}, f"{command.name}: {word}"


def test_every_test_that_the_table_of_families_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/checkpoints.md").read_text()))
    defined = {
        found
        for path in (ROOT / "tests").rglob("test_*.py")
        for found in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert named
    assert named <= defined
