"""Every program: help without the imports that take seconds, one line for a mistake."""

import os
import resource
import subprocess
import sys

import pytest

import noah_jax
from noah_jax.__main__ import PROGRAMS
from tests.helpers import ROOT

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


def _run(arguments, env=None, cwd=ROOT):
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


def _processor_seconds(arguments, env) -> float:
    """How long a process computes; its start is waited for, other processes do not count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert _run(arguments, env).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


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


def test_the_package_imports_in_half_a_second(no_heavy_modules):
    assert _processor_seconds(["-c", "import noah_jax"], no_heavy_modules) < 0.5


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_takes_less_than_a_second(program, no_heavy_modules):
    assert _processor_seconds(["-m", f"noah_jax.{program}", "--help"], no_heavy_modules) < 1


@pytest.mark.parametrize("program", ["evaluate", "predict", "explain", "export"])
def test_mistakes_get_one_line(program, no_heavy_modules):
    for arguments in ([], ["--chekpoint", "a"]):
        ran = _run(["-m", f"noah_jax.{program}", *arguments], no_heavy_modules)
        assert ran.returncode == 1 and ran.stdout == ""
        assert ran.stderr.startswith("error: ") and ran.stderr.count("\n") == 1, ran.stderr


def test_every_program_is_listed(no_heavy_modules):
    there = {path.parent.name for path in ROOT.glob("noah_jax/*/__main__.py")}
    assert there == set(PROGRAMS)
    for arguments in ([], ["--help"]):
        ran = _run(["-m", "noah_jax", *arguments], no_heavy_modules)
        assert ran.returncode == 0 and all(f"  {name} " in ran.stdout for name in PROGRAMS)
    ran = _run(["-m", "noah_jax", "--version"], no_heavy_modules)
    assert ran.stdout == f"noah-jax {noah_jax.__version__}\n"


def test_an_unknown_program_gets_a_near_match(no_heavy_modules):
    ran = _run(["-m", "noah_jax", "trian"], no_heavy_modules)
    assert ran.returncode == 1 and ran.stdout == ""
    assert ran.stderr == "error: there is no program 'trian'; did you mean train?\n"


# What the installed command `noah-jax` does.
COMMAND = (
    "import sys; sys.argv[0] = '/somewhere/bin/noah-jax';"
    "from noah_jax.__main__ import main; sys.exit(main())"
)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_names_the_command_that_was_typed(program, no_heavy_modules, tmp_path):
    typed = _run(["-c", COMMAND, program, "--help"], no_heavy_modules, cwd=tmp_path)
    assert typed.returncode == 0 and typed.stderr == ""
    assert f"noah-jax {program}" in typed.stdout and "-m noah_jax" not in typed.stdout
    module = _run(["-m", "noah_jax", program, "--help"], no_heavy_modules, cwd=tmp_path)
    assert f"python -m noah_jax {program}" in module.stdout


def test_the_command_hands_on_arguments_and_exit_codes(no_heavy_modules):
    ran = _run(["-c", COMMAND, "predict", "--chekpoint", "a"], no_heavy_modules)
    assert ran.returncode == 1 and ran.stderr.startswith("error: ")
    ran = _run(["-c", COMMAND, "models", "noah_resnet18"])
    assert ran.returncode == 0 and "11.697" in ran.stdout
