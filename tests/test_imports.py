"""The rooms of the house: which may import which, and how large a file may be.

The imports are read from the source, those inside functions included.
"""

import ast
import pathlib
from collections.abc import Iterator, Mapping

import pytest

from tests.helpers import ROOT

PACKAGE = ROOT / "noah_jax"
MOST_LINES = 450

GROUND = {
    *("cli", "compilation", "console", "distributed", "errors", "files", "interrupts"),
    *("lazy_imports", "paths", "platforms", "recipes", "timing"),
    *("config", "config_files", "config_flags", "config_names", "config_sections"),
    "config_values",
}
PROGRAMS = {
    *("convert", "evaluate", "predict", "explain", "export", "compare", "prepare", "probe"),
    *("parity", "benchmark", "compile", "autotune", "average"),
}
# What a room may import, besides the ground and itself.
LIBRARIES = {
    "nn": set(),
    "heads": {"nn"},
    "models": {"heads", "nn"},
    "data": set(),
    "pictures": set(),
    "tasks": {"data"},
    "runs": set(),
    "pytorch.files": set(),
    "pytorch": {"pytorch.files", "models", "heads", "nn"},
    "hub": {"models", "pytorch.files"},
    "inference": {"hub", "heads", "models", "pytorch", "pytorch.files", "runs", "data", "tasks"},
    "evaluation": {"inference", "models", "data", "tasks"},
    "train": {"inference", "models", "pytorch", "runs", "data", "tasks", "heads", "nn"},
    "aot": {"heads", "models", "nn"},
}
ALLOWED = {
    **{room: set() for room in GROUND},
    **LIBRARIES,
    **{program: set(LIBRARIES) for program in PROGRAMS},
}


def _module(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {_module(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _room(module: str) -> str:
    """The room of a module; empty for the package's own `__init__` and `__main__`."""
    parts = module.split(".")[1:]
    if parts[:2] == ["pytorch", "files"]:
        return "pytorch.files"
    return parts[0] if parts and parts != ["__main__"] else ""


def _names(path: pathlib.Path) -> Iterator[str]:
    """The modules that a file imports, and `module.name` of each name it imports from one."""
    typing_only: set[ast.AST] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            typing_only |= set(ast.walk(node))
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield inside if inside in SOURCES else str(node.module)


IMPORTS = {
    module: {name for name in _names(path) if name in SOURCES and name != module}
    for module, path in SOURCES.items()
}


def _cycle(arrows: Mapping[str, set[str]]) -> list[str]:
    """Some names that lead back to the first of them, or an empty list."""
    done: set[str] = set()

    def search(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for target in sorted(arrows.get(name, ())):
            if found := search(target, [*way, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(arrows) if (found := search(name, []))), [])


def test_every_room_has_its_rules():
    assert {_room(module) for module in SOURCES} - {""} == set(ALLOWED)


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_rooms_import_only_what_they_may(room):
    forbidden = {
        f"{module} imports {name}"
        for module, names in IMPORTS.items()
        for name in names
        if _room(module) == room and _room(name) not in {"", room} | GROUND | ALLOWED[room]
    }
    assert not forbidden


def test_no_module_leads_back_to_itself():
    # The lazy names of the package lead nowhere: it imports a module when a name is first used.
    assert _cycle({module: names - {"noah_jax"} for module, names in IMPORTS.items()}) == []


def test_no_room_leads_back_to_itself():
    arrows: dict[str, set[str]] = {}
    for module, names in IMPORTS.items():
        arrows.setdefault(_room(module), set()).update(
            room for name in names if (room := _room(name)) and room != _room(module)
        )
    # One room in DESIGN.md; its modules are in no cycle.
    ground = {room: "ground" if room in GROUND else room for room in arrows}
    joined: dict[str, set[str]] = {}
    for room, targets in arrows.items():
        own = joined.setdefault(ground[room], set())
        own.update(ground.get(target, target) for target in targets)
        own.discard(ground[room])
    assert _cycle(joined) == []


def test_a_cycle_would_be_seen():
    assert _cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert _cycle({"a": {"b", "c"}, "b": {"c"}}) == []


def test_the_readers_of_pytorch_files_need_neither_jax_nor_pytorch():
    for module, path in SOURCES.items():
        if _room(module) == "pytorch.files":
            imported = {name.partition(".")[0] for name in _names(path)}
            assert not imported & {"jax", "jaxlib", "flax", "torch"}, module


def test_files_are_small():
    lengths = {module: len(path.read_text().splitlines()) for module, path in SOURCES.items()}
    assert {m: n for m, n in lengths.items() if n > MOST_LINES} == {}


def test_every_folder_is_a_package():
    folders = {path.parent for path in SOURCES.values()}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []
