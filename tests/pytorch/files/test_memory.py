"""The memory that a conversion needs beside the file."""

import json
import os
import pathlib
import subprocess
import sys
import tracemalloc

import pytest
from flax.traverse_util import flatten_dict

from noah_jax.pytorch.load import load_torch
from noah_jax.runs.checkpoints import save_model
from tests.pytorch.files import torch_files as files

needs_linux = pytest.mark.skipif(
    not pathlib.Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc"
)


def _file(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Writes golden weights to a file that aligns them, as PyTorch's own files do."""
    state = files.golden_state(name)
    return files.write(folder / f"{name}.safetensors", state, "safetensors", name)


def _measure(source: pathlib.Path, folder: pathlib.Path) -> tuple[float, float]:
    """Seconds, and anonymous memory as a multiple of the file's size."""
    output = subprocess.run(
        [sys.executable, pathlib.Path(__file__).parent / "measured.py", source, folder],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    ).stdout
    found = json.loads(output.splitlines()[-1])
    size = source.stat().st_size
    seconds, ratio = found["seconds"], found["bytes"] / size
    print(f"{source.name}: {size / 1e6:.0f} MB, {seconds:.1f} s, {ratio:.2f} times the file's size")
    return seconds, ratio


def test_weights_are_not_copied_on_their_way(tmp_path):
    source = _file(tmp_path, "resnet34")
    loaded = load_torch(source)
    tree = {"params": loaded.params, "stats": loaded.stats}
    for path, leaf in flatten_dict(tree, sep="/").items():
        assert not leaf.flags.owndata, path
    # TensorStore's memory is not Python's and does not count here.
    tracemalloc.start()
    try:
        save_model(tmp_path / "folder", tree)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.5 * source.stat().st_size


@needs_linux
@pytest.mark.slow
@pytest.mark.parametrize(("name", "limit"), [("noah_resnet152", 2.0), ("noah_pvt_huge_v2", 1.5)])
def test_memory_and_time(name, limit, tmp_path):
    seconds, ratio = _measure(_file(tmp_path, name), tmp_path / "folder")
    assert ratio < limit, f"{seconds:.1f} s, {ratio:.2f} times the file's size"
