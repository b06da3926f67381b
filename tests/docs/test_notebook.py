"""The notebook is made of docs/notebook.py, and runs from its first cell to its last."""

import importlib.util
import json
import re

import pytest

from tests.helpers import ROOT


@pytest.fixture(scope="module")
def script():
    path = ROOT / "scripts" / "make_notebook.py"
    spec = importlib.util.spec_from_file_location("make_notebook", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(script):
    return script.notebook((ROOT / "docs" / "notebook.py").read_text())


def _sources(notebook) -> list[tuple[str, str]]:
    return [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]


def _check_outputs(notebook) -> None:
    outputs = [x for cell in notebook["cells"] for x in cell.get("outputs", [])]
    assert [x for x in outputs if x["output_type"] == "error"] == []
    printed = "".join("".join(x["text"]) for x in outputs if "text" in x)
    *_, accuracy = re.findall(r"test accuracy ([\d.]+) %", printed)
    assert float(accuracy) > 75
    assert [x for x in outputs if "image/png" in x.get("data", {})]


def test_the_notebook_is_what_its_script_makes(made):
    """After a change of docs/notebook.py: `python scripts/make_notebook.py`."""
    kept = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text())
    assert _sources(kept) == _sources(made)
    assert len({cell["id"] for cell in kept["cells"]}) == len(kept["cells"])
    _check_outputs(kept)


@pytest.mark.slow
def test_the_notebook_runs(script, made):
    pytest.importorskip("nbclient", reason="needs the extra test")
    pytest.importorskip("ipykernel", reason="needs the extra test")
    _check_outputs(script.execute(made))
