"""Makes the page of the repository's rooms from the first lines of their docstrings."""

import pathlib

from .text import ROOT, docstring, inline

PATH = "architecture.md"

_HEAD = """# Architecture

The repository is a tree of small rooms. Imports point one way: `nn`, then `heads`, then `models`,
then `inference` and `train`, then the programs. No program imports another program, and the modules
at the top of the package import nobody above them. `tests/test_imports.py` fails where a file
breaks this.
"""

# The folders beside the package have no docstrings of their own.
FOLDERS = {
    "configs": "The configurations, one file a family of models.",
    "docs": "The documentation, and what makes its reference from the code.",
    "noah_jax": "The package.",
    "scripts": "Starting runs on clusters, the tutorial, and what made the pinned test data.",
    "tests": "The tests; their folders mirror the package.",
}


def page() -> str:
    """Returns the page as Markdown."""
    package = ROOT / "noah_jax"
    rooms = sorted(path.parent for path in package.rglob("__init__.py"))[1:]
    parts = [_HEAD, "## The tree"]
    parts.append("\n".join(_line(0, name, about) for name, about in FOLDERS.items()))
    parts.append("## Rooms of the package")
    parts.append("\n".join(_line(_depth(room), room.name, _about(room)) for room in rooms))
    parts.append("## Every file")
    for room in [package, *rooms]:
        parts.append(f"### {room.relative_to(ROOT)}")
        files = [path for path in sorted(room.glob("*.py")) if path.name != "__init__.py"]
        lines = [_line(0, path.name, _first_line(path)) for path in files]
        parts.append("\n".join([inline(_about(room)), "", *lines]))
    return "\n\n".join(parts) + "\n"


def _depth(room: pathlib.Path) -> int:
    return len(room.relative_to(ROOT / "noah_jax").parts) - 1


def _about(room: pathlib.Path) -> str:
    return _first_line(room / "__init__.py")


def _first_line(path: pathlib.Path) -> str:
    return docstring(path).partition("\n\n")[0]


def _line(depth: int, name: str, about: str) -> str:
    return f"{'    ' * depth}- `{name}`: {inline(about)}"
