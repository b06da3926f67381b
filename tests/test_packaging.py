"""What the package declares and carries; installing it into a fresh environment."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

import noah_jax
from noah_jax.cli import BASE, EXTRAS
from tests.helpers import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# What pip calls a module, where that is not the module's own name in lower case.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "cv2": "opencv-python-headless",
    "flax": "flax",
    "mlflow": "mlflow-skinny",
    "nvidia": "nvidia-dali-cuda130",
    "orbax": "orbax-checkpoint",
}
# The benchmark compares with these where they are installed.
OPTIONAL = {"timm", "torchvision"}
# Excludes a version that this package needs, so it is installed without what it depends on.
ALONE = {"jax2onnx"}


def _requirements(extra: str | None) -> set[str]:
    """The names of the distributions that an extra brings, or that are always installed."""
    project = PYPROJECT["project"]
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    found = set()
    for line in lines:
        name, extras = re.match(r"([\w.-]+)(?:\[([\w,]+)\])?", line).groups()
        if name == project["name"]:
            found = found.union(*(_requirements(own) for own in extras.split(",")))
        else:
            found.add(re.sub(r"[._-]+", "-", name.lower()))
    return found


def _imported() -> set[str]:
    """The modules outside the standard library that the package imports anywhere."""
    modules = set()
    for path in (ROOT / "noah_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(str(node.module).partition(".")[0])
    return modules - set(sys.stdlib_module_names) - {"noah_jax"}


def _distribution(module: str) -> str:
    return DISTRIBUTIONS.get(module, module.lower().replace("_", "-"))


def test_whatever_is_imported_is_declared():
    base = _requirements(None)
    assert {_distribution(module) for module in BASE} == base
    for module in _imported() - OPTIONAL - ALONE - BASE:
        extra = EXTRAS[module]
        assert _distribution(module) in _requirements(extra), f"{module} is not in {extra}"
    assert not {_distribution(module) for module in EXTRAS} & base


def test_the_tests_bring_all_but_what_is_large():
    extras = PYPROJECT["project"]["optional-dependencies"].keys()
    large = {"torch", "onnx", "tpu", "cuda", "dali", "hf", "mlflow", "trackio", "wandb"}
    others = set().union(*map(_requirements, extras - large))
    assert _requirements("test") == others


def test_the_version_is_the_same_everywhere():
    changes = re.search(r"^## (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert changes[1] == citation[1] == noah_jax.__version__


def test_files_of_other_kinds_travel_in_the_package():
    carried = set()
    for package, patterns in PYPROJECT["tool"]["setuptools"]["package-data"].items():
        folder = ROOT.joinpath(*package.split("."))
        for pattern in patterns:
            found = {path for path in folder.glob(pattern) if path.is_file()}
            assert found, f"{package} has no {pattern}"
            carried |= found
    others = {
        path
        for path in (ROOT / "noah_jax").rglob("*")
        if path.is_file() and path.suffix != ".py" and path.parent.name != "__pycache__"
    }
    assert others == carried


def test_the_readme_names_files_that_exist():
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert [link for link in links if ":" not in link and not (ROOT / link).exists()] == []
    named = re.findall(r"`((?:noah_jax|configs|scripts|tests|docs)/[\w./-]*)[`:]", text)
    assert named and [name for name in named if not (ROOT / name).exists()] == []


def _python(folder):
    return [str(folder / "bin" / "python")]


def _succeed(command, **arguments):
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=600, **arguments
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.slow
def test_the_head_works_where_only_jax_flax_and_numpy_are_installed(tmp_path):
    source, environment = tmp_path / "source", tmp_path / "environment"
    kept = shutil.ignore_patterns(".*", "*.egg-info", "build", "tests", "runs", "docs")
    shutil.copytree(ROOT, source, ignore=kept)
    outside = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    _succeed([sys.executable, "-m", "venv", str(environment)])
    pip = [*_python(environment), "-m", "pip", "install", "--quiet"]
    _succeed([*pip, "jax", "flax", "numpy"], env=outside)
    _succeed([*pip, "--no-deps", str(source)], env=outside)
    code = """
import jax, noah_jax
from noah_jax import NOAH, poca
from flax import nnx
head = NOAH(32, 10, 4, 0.5, rngs=nnx.Rngs(0))
print(head(jax.numpy.ones((2, 7, 7, 32)), train=False).shape, noah_jax.__file__)
model = noah_jax.create_model("noah_resnet18", num_classes=10, width=4, image_size=32)
params, stats = model.init(jax.random.key(0))
print(model.predict(params, stats, jax.numpy.zeros((1, 32, 32, 3))).shape)
"""
    said = _succeed([*_python(environment), "-c", code], cwd=tmp_path, env=outside)
    assert "(2, 10)" in said and "(1, 10)" in said and str(environment) in said
    # The programs' help needs no more; what they need is named.
    command = str(environment / "bin" / "noah-jax")
    assert "--checkpoint" in _succeed([command, "predict", "--help"], cwd=tmp_path, env=outside)
    ran = subprocess.run(
        [command, "train", "--config", "quickstart.py", "--workdir", "q"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=outside,
    )
    assert ran.returncode == 1 and ran.stderr.count("\n") == 1, ran.stderr
    assert ran.stderr.startswith("error: ") and "pip install" in ran.stderr
