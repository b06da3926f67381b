"""Runs scripts/tutorial.py from its first to its last step, as a user starts it."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from tests.helpers import ROOT


def test_the_tutorial(tmp_path):
    pytest.importorskip("flatbuffers")
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "jax"),
    }
    command = [sys.executable, "scripts/tutorial.py", "--quick", "--workdir", str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    said = ran.stdout.splitlines()
    assert [line[0] for line in said if line[1:3] == ". "] == list("123456")
    for program in ("train", "evaluate", "predict", "explain", "export"):
        assert sum(line.startswith(f"$ python -m noah_jax.{program} ") for line in said) == 1
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert f"{results['top1']:.2f}%" in ran.stdout and results["examples"] == 2000
    assert "The logits of the 4 images are the same before and after, bit for bit." in said
    assert (tmp_path / "explanation/index.html").stat().st_size > 10_000
    assert len(list((tmp_path / "explanation").glob("*.png"))) == 12
    with Image.open(tmp_path / "overview.png") as picture:
        assert picture.height > 4 * 224
    assert "Loaded from" in said[-3] and float(said[-3].split()[-4]) < 1e-3

    # A program that fails prints the reason, and the tutorial stops there.
    (tmp_path / "run/config.json").write_text("{}")
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 1 and ran.stderr.count("\n") == 1
    assert "another configuration" in ran.stderr and "evaluate" not in ran.stdout
