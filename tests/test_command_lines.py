"""Every program: help without the imports that take seconds, one line for a mistake."""

import os
import subprocess
import sys

import pytest

from tests.helpers import ROOT

PROGRAMS = [
    *("train", "evaluate", "predict", "explain", "export"),
    *("benchmark", "compare", "parity", "compile", "models"),
]
SCRIPTS = [
    "convert_torch_weights.py",
    *sorted(f"scripts/{p.name}" for p in ROOT.glob("scripts/*.py")),
]
# Put in the place of what must not be imported: importing it fails, for packages and modules.
HEAVY = ("jax", "flax", "optax", "orbax", "grain", "tensorflow", "tensorflow_datasets", "torch")


@pytest.fixture(scope="session")
def no_heavy_modules(tmp_path_factory) -> dict[str, str]:
    """The environment of a process in which importing a heavy module is an error."""
    folder = tmp_path_factory.mktemp("light")
    for name in HEAVY:
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')\n")
    return os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def _run(arguments, env=None):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("program", [*PROGRAMS, *SCRIPTS])
def test_help_imports_nothing_heavy(program, no_heavy_modules):
    command = [program] if program.endswith(".py") else ["-m", f"noah_jax.{program}"]
    ran = _run([*command, "--help"], no_heavy_modules)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == "" and "python " in ran.stdout  # an example


def test_what_is_not_to_be_imported_is_not(no_heavy_modules):
    """The test above would see it."""
    ran = _run(["-m", "noah_jax.models"], no_heavy_modules)
    assert ran.returncode != 0 and "was imported" in ran.stderr


def test_the_package_is_lazy(no_heavy_modules):
    code = "import noah_jax, noah_jax.models; print(dir(noah_jax)); noah_jax.nothing"
    ran = _run(["-c", code], no_heavy_modules)
    assert "create_model" in ran.stdout
    assert ran.stderr.endswith("module 'noah_jax' has no attribute 'nothing'\n")


@pytest.mark.parametrize("program", ["evaluate", "predict", "explain", "export"])
def test_mistakes_get_one_line(program, no_heavy_modules):
    for arguments in ([], ["--chekpoint", "a"]):
        ran = _run(["-m", f"noah_jax.{program}", *arguments], no_heavy_modules)
        assert ran.returncode == 1 and ran.stdout == ""
        assert ran.stderr.startswith("error: ") and ran.stderr.count("\n") == 1, ran.stderr
