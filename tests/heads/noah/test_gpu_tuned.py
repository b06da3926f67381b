"""The file of tuned block sizes: stored, read by plans, ignored where it is damaged or foreign."""

import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from noah_jax import console
from noah_jax.heads.noah import gpu_tuned
from noah_jax.heads.noah.gpu_plan import default_blocks, gpu_plan
from noah_jax.heads.noah.operands import PocaShape
from tests.heads.noah.kernel_checks import gpu_mesh

SHAPE = PocaShape(32, (7, 7), 64, 4, 50, jnp.dtype(jnp.bfloat16))


@pytest.fixture
def on_a_gpu(monkeypatch, tmp_path):
    """Makes this machine look like one with a GPU, and its cache lie in a folder of the test."""
    monkeypatch.setattr(gpu_tuned, "path", lambda: tmp_path / "cache" / "blocks.json")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    gpu_tuned._read.cache_clear()
    console.warn_once.cache_clear()
    yield tmp_path / "cache" / "blocks.json"
    gpu_tuned._read.cache_clear()


def _planned(shape=SHAPE, **sizes):
    with jax.sharding.use_abstract_mesh(gpu_mesh()):
        return gpu_plan(shape, **sizes).blocks


def test_what_was_stored_is_planned(on_a_gpu):
    default = default_blocks(SHAPE, 32)
    assert _planned() == default
    gpu_tuned.store(SHAPE, 32, {"warps": 8, "products": True})
    gpu_tuned.store(SHAPE._replace(batch=16), 16, {"warps": 2})
    assert _planned().warps == 8 and _planned().products
    assert _planned(warps=4).warps == 4  # what the caller says comes first
    assert _planned(SHAPE._replace(batch=16)).warps == 2
    assert _planned(SHAPE._replace(dropout=0.1)).warps == default.warps


def test_another_jax_or_card_is_another_entry(on_a_gpu, monkeypatch):
    gpu_tuned.store(SHAPE, 32, {"warps": 8})
    with monkeypatch.context() as patch:
        patch.setattr(jax, "__version__", "0.0.1")
        assert _planned().warps == 4
    assert _planned().warps == 8


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name"),
        ("[1]", "it is not a table"),
        ('{"a": 1}', "it is not a table"),
        (json.dumps({"KEY": {"tiles": 2}}), "got 'tiles'"),
        (json.dumps({"KEY": {"classes": 7}}), "classes must be at least 16"),
    ],
)
def test_a_damaged_file_is_one_warning_and_ignored(on_a_gpu, capsys, text, reason):
    on_a_gpu.parent.mkdir()
    on_a_gpu.write_text(text.replace("KEY", gpu_tuned.key(SHAPE, 32)))
    assert _planned() == _planned() == default_blocks(SHAPE, 32)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{on_a_gpu} is ignored, remove it: " in error and reason in error


def test_the_file_lies_beside_the_compilation_cache(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    try:
        for folder, beside in (
            (str(tmp_path / "cache" / "compiled"), tmp_path / "cache"),
            ("gs://bucket/compiled", pathlib.Path("~/.cache/noah_jax").expanduser()),
            (None, pathlib.Path("~/.cache/noah_jax").expanduser()),
        ):
            jax.config.update("jax_compilation_cache_dir", folder)
            assert gpu_tuned.path() == beside / "noah_head_blocks.json"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
