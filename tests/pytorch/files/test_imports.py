"""The readers of files stand alone: they load neither JAX nor PyTorch."""

import os
import subprocess
import sys

from tests.helpers import ROOT

SCRIPT = """
import importlib, pkgutil, sys
import noah_jax.pytorch.files as files

modules = [module.name for module in pkgutil.iter_modules(files.__path__)]
for module in modules:
    importlib.import_module(f"noah_jax.pytorch.files.{module}")
files.layouts.load_weights(sys.argv[1])
heavy = ("jax", "jaxlib", "flax", "torch", "tensorflow")
print(len(modules), sorted(set(heavy) & set(sys.modules)))
"""


def test_neither_jax_nor_pytorch_is_imported():
    source = ROOT / "tests" / "data" / "torch" / "timm.pth.tar"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, source],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.split(maxsplit=1) == ["9", "[]\n"]
