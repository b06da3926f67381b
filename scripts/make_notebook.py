"""Makes docs/tutorial.ipynb of the cells in docs/notebook.py, and runs it.

    python scripts/make_notebook.py
    python scripts/make_notebook.py --output /tmp/tutorial.ipynb --no-run

The notebook keeps what its cells print and draw, so it can be read without being run. This needs
nbclient and ipykernel: pip install -e '.[test]'. With --no-run they are not needed, and nothing is
kept.
"""

from noah_jax.cli import Parser, run, show_help

if __name__ == "__main__":
    show_help(__doc__)  # before the imports that take seconds

import argparse
import json
import pathlib
import re
import sys
from typing import Any

_ROOT = pathlib.Path(__file__).parent.parent
_CELL = re.compile(r"^# %%( \[markdown\])?\n", re.MULTILINE)


def notebook(text: str) -> dict[str, Any]:
    """Returns a notebook that was not run, in version 4.5 of the format.

    Args:
      text: Cells as in docs/notebook.py; what stands before the first one is left out.
    """
    _, *parts = _CELL.split(text)
    cells = []
    for number, (mark, body) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
        source = body.strip("\n")
        cell: dict[str, Any] = {"id": f"cell-{number:02}", "metadata": {}}
        if mark:
            source = re.sub(r"^# ?", "", source, flags=re.MULTILINE)
            cell |= {"cell_type": "markdown"}
        else:
            cell |= {"cell_type": "code", "execution_count": None, "outputs": []}
        cells.append(cell | {"source": source.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def execute(made: dict[str, Any]) -> dict[str, Any]:
    """Runs a notebook at the root of the repository; returns it with what its cells put out."""
    import nbformat
    from nbclient import NotebookClient

    ran = nbformat.reads(json.dumps(made), as_version=4)
    resources = {"metadata": {"path": str(_ROOT)}}
    options = {"timeout": 1200, "record_timing": False, "coalesce_streams": True}
    NotebookClient(ran, resources=resources, **options).execute()
    for cell in ran.cells:
        # A warning of a library is of this machine, and no result.
        cell.outputs = [x for x in cell.get("outputs", []) if x.get("name") != "stderr"]
        if cell.cell_type == "markdown":
            del cell["outputs"]
    return json.loads(nbformat.writes(ran))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python scripts/make_notebook.py", description=__doc__)
    add = parser.add_argument
    add(
        "--output",
        default=_ROOT / "docs" / "tutorial.ipynb",
        type=pathlib.Path,
        metavar="FILE.ipynb",
        help="the file to write",
    )
    add("--no-run", action="store_true", help="write the cells alone")
    return parser


def _main(arguments: argparse.Namespace) -> int:
    made = notebook((_ROOT / "docs" / "notebook.py").read_text(encoding="utf-8"))
    if not arguments.no_run:
        made = execute(made)
    text = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
    arguments.output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run(_main, _parser()))
