"""The shape of the package: imports point one way, in no circle, and the root stays readable."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "llmcodec_jax"
NAME = PACKAGE.name
ROOT_MODULES = 20

LAYERS = (
    {"types", "errors", "ops", "audio", "hardware", "pages"},
    {"codec", "bridge", "lm", "discriminators", "losses", "data", "semantics"},
    {"training", "evaluation", "corpus"},
    {"compiling", "speech_lm"},
    {"study", "benchmarks", "web", "portable"},
)
"""Rooms from the bottom up: a room may import its own layer's rooms and those below."""


def module_name(path: Path) -> str:
    parts = (NAME, *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(module: str) -> set[str]:
    """Modules of the package that `module` imports, inside functions too, for types not."""
    tree = ast.parse(MODULES[module].read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            node.body = [ast.Pass()]
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: relative import"
            base = node.module or ""
            below = {f"{base}.{alias.name}" for alias in node.names}
            inside = below & MODULES.keys()
            found |= inside
            # `from package import module` needs the package itself only for what it defines.
            found |= {base} if below - inside else set()
    return {name for name in found if name in MODULES and name != module}


IMPORTS = {module: imported(module) for module in MODULES}


def room(module: str) -> str:
    """The part of the package below its root that a module belongs to; "" for the root itself."""
    return module.split(".")[1] if "." in module else ""


def layer(module: str) -> int:
    """Height of a module's room; commands and the package itself stand on top."""
    heights = {name: height for height, names in enumerate(LAYERS) for name in names}
    return heights.get(room(module), len(LAYERS))


def between_rooms() -> dict[str, set[str]]:
    """room -> the other rooms it imports; the package itself is no room."""
    rooms: dict[str, set[str]] = {}
    for module, others in IMPORTS.items():
        mine = room(module)
        rooms.setdefault(mine, set()).update(room(other) for other in others if other != NAME)
        rooms[mine].discard(mine)
    rooms.pop("")
    return rooms


@pytest.mark.parametrize("graph", [IMPORTS, between_rooms()], ids=["modules", "rooms"])
def test_no_import_runs_in_a_circle(graph):
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail("imports run in a circle: " + " <- ".join(error.args[1]))


def test_imports_point_one_way():
    wrong = [
        f"{module} imports {other}"
        for module, others in IMPORTS.items()
        for other in others
        if layer(other) > layer(module) and other != NAME
    ]
    assert not wrong, "imports against the order of LAYERS:\n" + "\n".join(wrong)


def test_every_room_has_its_place():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders <= set().union(*LAYERS), "a room is missing in LAYERS"


def test_the_root_stays_readable():
    modules = sorted(path.name for path in PACKAGE.glob("*.py"))
    assert len(modules) <= ROOT_MODULES, f"{len(modules)} modules in the package root: {modules}"


def test_losses_take_arrays_never_modules():
    wrong = {
        module: sorted(other for other in others if room(other) in ("codec", "lm", "data"))
        for module, others in IMPORTS.items()
        if room(module) == "losses"
    }
    assert not any(wrong.values()), wrong
