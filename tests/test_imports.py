"""Who may import whom: the rooms of the design, checked by walking the imports."""

import ast
from pathlib import Path

import pytest

import ldm

ROOT = Path(ldm.__file__).parent

ALLOWED = {
    "storage": set(),
    "models": {"models"},
    "diffusion": {"diffusion"},
    "data": {"data"},
    "conditioning": {"conditioning", "checkpoint", "data", "models", "diffusion", "generation"},
    "checkpoint": {"checkpoint", "conditioning", "models", "diffusion"},
    "generation": {"generation", "conditioning", "checkpoint", "models", "diffusion"},
    "training": {"training", "models", "diffusion", "data", "conditioning", "checkpoint", "generation"},
    "evaluation": {"evaluation", "models", "diffusion", "data", "conditioning", "checkpoint", "generation"},
    "info": {
        "info",
        "models",
        "diffusion",
        "data",
        "checkpoint",
        "conditioning",
        "generation",
        "training",
        "evaluation",
    },
    "bench": {"bench", "info", "models", "diffusion", "data", "conditioning", "checkpoint", "generation", "training"},
    "recipe": {
        "recipe",
        "models",
        "diffusion",
        "data",
        "checkpoint",
        "conditioning",
        "generation",
        "training",
        "evaluation",
    },
}
EVERYWHERE = {"allocator", "chart", "config", "devices", "errors", "processes", "registry", "storage"}
EVERYWHERE |= {"weights", "configs"}


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ldm":
            parts = node.module.split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ldm.")}
    return rooms


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_only_the_rooms_it_may_know(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py")) if (ROOT / room).is_dir() else [ROOT / f"{room}.py"]
    assert files
    for path in files:
        strangers = imported_rooms(path) - ALLOWED[room] - EVERYWHERE - {"__version__"}
        assert not strangers, f"{path} imports {strangers}"


def test_nothing_imports_the_command_line() -> None:
    importers = [path for path in ROOT.rglob("*.py") if "cli" in imported_rooms(path)]
    assert [path.name for path in importers] == ["__main__.py"]
