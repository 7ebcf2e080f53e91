"""Which module may import which: the floors of the design and the absence of circles, checked with `ast`."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ldm

ROOT = Path(ldm.__file__).parent

# Packages and modules of `ldm` from the ground up. A module imports from its own package and from lower floors.
FLOORS = (
    {"allocator", "chart", "config", "devices", "errors", "processes", "registry", "storage"},
    {"data", "diffusion", "models"},
    {"adapters", "checkpoint", "conditioning"},
    {"generation"},
    {"bench", "evaluation", "info", "recipe", "serve", "training"},
    {"cli"},
)
LEVEL = {name: level for level, floor in enumerate(FLOORS) for name in floor}
NEIGHBOURS = (0, 2, 4)  # floors on which packages may import each other, as long as no circle of modules arises
OUTSIDE = {"configs", "weights"}  # data files that are installed below `ldm`

# Violations that are being removed: (importing module, imported package).
UPWARD = {
    ("ldm.conditioning.text.prompts", "generation"),
    ("ldm.config.root", "conditioning"),
    ("ldm.config.root", "models"),
}


def read_modules() -> dict[str, ast.Module]:
    """Map the name of every module of `ldm` and of the command line to its syntax tree."""
    cli = ROOT / "cli" if (ROOT / "cli").is_dir() else ROOT.parent / "cli"
    found = {}
    for folder, package in ((ROOT, "ldm"), (cli, "ldm.cli")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *(part for part in parts if part != "__init__")))
            found[name] = ast.parse(path.read_text(), str(path))
    return found


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Walk a tree, without what stands below `if TYPE_CHECKING`."""
    yield node
    skipped = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    for child in node.orelse if skipped else ast.iter_child_nodes(node):
        yield from runtime_nodes(child)


def imports(tree: ast.Module) -> set[str]:
    """Name the modules of `ldm` that a module imports, at its top or inside a function."""
    found = set()
    for node in runtime_nodes(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            assert node.level == 0, "relative imports are not used"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & MODULES.keys()
            found |= {node.module} if names - MODULES.keys() else set()
    return found - {"ldm"}  # whose __init__ exports lazily


MODULES = read_modules()
IMPORTS = {name: imports(tree) for name, tree in MODULES.items()}


def package(module: str) -> str:
    return module.split(".")[1]


def may_import(importer: str, imported: str) -> bool:
    ours, theirs = LEVEL[package(importer)], LEVEL[package(imported)]
    return package(importer) == package(imported) or theirs < ours or (theirs == ours and ours in NEIGHBOURS)


def test_every_package_has_a_floor() -> None:
    packages = {package(name) for name in MODULES if name.count(".") > 0}
    assert packages - OUTSIDE - {"__main__"} <= LEVEL.keys()


def test_modules_import_only_from_lower_floors() -> None:
    modules = [name for name in MODULES if name not in ("ldm", "ldm.__main__") and package(name) not in OUTSIDE]
    edges = {(name, other) for name in modules for other in IMPORTS[name] if package(other) not in OUTSIDE}
    upward = {(importer, other) for importer, other in edges if not may_import(importer, other)}
    assert {edge for edge in upward if (edge[0], package(edge[1])) not in UPWARD} == set()


def circles() -> list[set[str]]:
    """Find the strongly connected components of more than one module (Tarjan, 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in sorted(IMPORTS[name]):
            if other not in order:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == order[name]:
            component = set(stack[stack.index(name) :])
            del stack[stack.index(name) :]
            if len(component) > 1:
                found.append(component)

    for name in MODULES:
        if name not in order:
            visit(name)
    return found


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles() == []


@pytest.mark.parametrize("name", ["ldm.models", "ldm.diffusion"])
def test_networks_and_mathematics_do_not_know_each_other(name: str) -> None:
    other = "ldm.diffusion" if name == "ldm.models" else "ldm.models"
    importers = [module for module in MODULES if f"{module}.".startswith(f"{name}.")]
    assert importers
    assert not [module for module in importers if any(f"{each}.".startswith(f"{other}.") for each in IMPORTS[module])]
