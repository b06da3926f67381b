"""Which implementation of the head runs where; asking for one by name; the examples."""

import doctest
import functools
import importlib
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from noah_jax import console
from noah_jax.errors import InputError
from noah_jax.heads.noah import IMPLEMENTATIONS, poca
from noah_jax.heads.noah.operands import ChannelSplit, PocaShape
from noah_jax.heads.noah.poca import ROWS, choose
from tests.heads.noah.kernel_checks import (
    gpu_mesh,
    lowered_for_cuda,
    make_case,
    tpu_mesh,
    value_and_gradients,
)


def _shape(**changes):
    shape = PocaShape(32, (7, 7), 64, 4, 50, jnp.dtype(jnp.bfloat16), ChannelSplit(1 / 4))
    return shape._replace(**changes)


def _chosen(implementation, mesh=None, **changes):
    """Chooses on one TPU, or another mesh, or emulated; gives the names of the rows by platform."""
    with jax.sharding.use_abstract_mesh(mesh or tpu_mesh()):
        choices = choose(implementation, _shape(**changes))
    return {platform: choice.name for platform, choice in choices.items()}


def _chosen_on_gpu(implementation, **changes):
    """Chooses on one H100; gives the name of the row for CUDA."""
    choices = _chosen(implementation, gpu_mesh(), **changes)
    return choices.get("cuda", choices["default"])


_PLAIN = {"cpu": "cpu", "default": "chunked"}
_WIDE = dict(channels=2048, head_num=1)  # no plan of the GPU's kernel fits


def test_auto_takes_the_tpu_kernel_in_its_dtypes():
    assert _chosen("auto") == {"tpu": "tpu"} | _PLAIN
    assert _chosen("auto", spatial_major=True) == {"tpu": "tpu_map"} | _PLAIN
    assert _chosen("auto", spatial_major=True, dropout=0.1) == {"tpu": "tpu"} | _PLAIN
    assert _chosen("auto", batch=8) == {"tpu": "tpu"} | _PLAIN
    assert _chosen("auto", batch=20) == _PLAIN
    assert _chosen("auto", dtype=np.dtype(np.float32)) == {"tpu": "tpu"} | _PLAIN
    assert _chosen("auto", dtype=np.dtype(np.float16)) == _PLAIN


def test_auto_takes_the_gpu_kernel_in_narrow_dtypes():
    assert _chosen_on_gpu("auto") == "gpu"
    assert _chosen_on_gpu("auto", dtype=np.dtype(np.float16)) == "gpu"
    assert _chosen_on_gpu("auto", dtype=np.dtype(np.float32)) == "chunked"
    assert _chosen_on_gpu("auto", dropout=0.1) == "gpu"
    assert _chosen_on_gpu("auto", batch=7) == "gpu"


def test_auto_on_gpus_takes_the_definition_only_where_it_is_small():
    assert _chosen_on_gpu("auto", **_WIDE) == "small_reference"
    assert _chosen_on_gpu("auto", **_WIDE, num_classes=1000) == "small_reference"
    assert _chosen_on_gpu("auto", **_WIDE, num_classes=1000, batch=2048) == "chunked"
    assert _chosen_on_gpu("auto", **_WIDE, dtype=np.dtype(np.float32)) == "chunked"


def test_pallas_takes_a_kernel_where_one_fits():
    kernels = {"tpu": "tpu", "cpu": "tpu_interpret", "default": "chunked"}
    assert _chosen("pallas") == kernels
    assert _chosen("pallas", dtype=np.dtype(np.float32)) == kernels
    of_maps = kernels | {"tpu": "tpu_map", "cpu": "tpu_map_interpret"}
    assert _chosen("pallas", spatial_major=True) == of_maps
    assert _chosen("pallas", batch=20) == _PLAIN
    assert _chosen("pallas", dtype=np.dtype(np.float16)) == _PLAIN
    assert _chosen_on_gpu("pallas", dtype=np.dtype(np.float32)) == "gpu"


def test_a_symbolic_batch_takes_no_kernel():
    (batch,) = jax.export.symbolic_shape("batch")
    assert _chosen("auto", batch=batch) == _chosen("auto", gpu_mesh(), batch=batch) == _PLAIN


def test_without_a_mesh_nothing_says_how_to_split_the_batch():
    with pytest.raises(InputError, match=r"'tpu' does not fit: .*use jax.set_mesh"):
        choose("tpu", _shape())
    assert "tpu" not in choose("auto", _shape())


def _triton_calls(dtype, *, implementation="auto"):
    """Counts the kernels of a forward and backward pass that is lowered for CUDA."""
    features, *weights = make_case(2, 16, 9)

    def loss(features, query, value):
        logits = poca(features, query, value, key_ratio=0.25, implementation=implementation)
        return (logits**2).sum()

    grad = jax.grad(loss, argnums=(0, 1, 2))
    text = lowered_for_cuda(grad, jnp.asarray(features, dtype), *weights)
    return text.count("@__gpu$xla.gpu.triton")


def test_auto_lowers_to_the_kernel_for_cuda(capsys):
    assert _triton_calls(jnp.bfloat16) == _triton_calls(jnp.float16) == 3
    assert _triton_calls(jnp.float32) == 0
    assert not capsys.readouterr().err


@pytest.mark.parametrize("platforms", [("cuda",), ("cpu", "cuda")])
def test_exported_programs_hold_no_kernel(platforms):
    features, *weights = make_case(2, 16, 9)
    features, weights = jnp.asarray(features, jnp.bfloat16), map(tuple, weights)
    arguments = features, *weights
    run = jax.jit(functools.partial(poca, key_ratio=0.25))
    with jax.sharding.use_abstract_mesh(gpu_mesh()):
        exported = jax.export.export(run, platforms=platforms)(*arguments)
    assert "triton" not in str(exported.mlir_module())
    if "cpu" in platforms:
        logits = jax.export.deserialize(exported.serialize()).call(*arguments)
        np.testing.assert_allclose(logits, run(*arguments), rtol=1e-3, atol=1e-3)


@pytest.fixture
def fresh_warnings():
    """Forgets the warnings that earlier tests have seen."""
    console.warn_once.cache_clear()


_TRITON = "jax.experimental.pallas.triton"


class _ChangedTriton:
    """A later version of the backend, which has other arguments."""

    @staticmethod
    def CompilerParams():
        raise NotImplementedError


def _assert_one_warning(text, reason):
    assert text.count("\n") == 1
    assert text.startswith("warning: NVIDIA GPUs compute the NOAH head without its kernel: ")
    assert _TRITON in text and reason in text


@pytest.mark.parametrize(
    ("backend", "reason"), [(None, "None in sys.modules"), (_ChangedTriton, "num_warps")]
)
def test_without_triton_the_next_form_is_taken(
    monkeypatch, capsys, fresh_warnings, backend, reason
):
    monkeypatch.setitem(sys.modules, _TRITON, backend)
    assert _triton_calls(jnp.bfloat16) == 0
    assert _chosen_on_gpu("auto") == _chosen_on_gpu("auto", batch=16) == "small_reference"
    assert _chosen_on_gpu("pallas") == "chunked"
    _assert_one_warning(capsys.readouterr().err, reason)
    with pytest.raises(InputError, match=f"'gpu' does not fit: {_TRITON} .*{reason}"):
        _chosen_on_gpu("gpu")


def test_a_missing_triton_is_no_matter_for_tpus(monkeypatch, capsys, fresh_warnings):
    monkeypatch.setitem(sys.modules, _TRITON, None)
    assert _chosen("auto") == {"tpu": "tpu"} | _PLAIN
    assert not capsys.readouterr().err


def test_xla_takes_no_kernel():
    assert _chosen("xla") == _PLAIN
    assert _chosen("reference") == {"default": "reference"}


def test_a_row_is_taken_by_its_name():
    for name, row in ROWS.items():
        bound = row.platform in ("tpu", "cuda")  # compiled kernels run nowhere else
        platform = row.platform if bound else "default"
        mesh = gpu_mesh() if platform == "cuda" else None
        assert _chosen(name, mesh, spatial_major="map" in name) == {platform: name}


@pytest.mark.parametrize(
    "name", [name for name, row in ROWS.items() if row.platform in ("cpu", "default")]
)
def test_rows_that_run_anywhere_agree(name):
    options = dict(spatial_major=True, implementation=name)
    case = make_case(2, 16, 9)
    logits, _ = value_and_gradients(*case, **options)
    expected, _ = value_and_gradients(*case, implementation="reference")
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        ("tpu_map", dict(spatial_major=False), "spatial_major=True"),
        ("tpu_map", dict(spatial=(49,)), "got 1 spatial dimensions"),
        ("tpu_map", dict(dropout=0.1), "no dropout"),
        ("tpu_map", dict(split=ChannelSplit(1 / 4, kv_split=False)), "head_split and kv_split"),
        ("tpu", dict(batch=20), "multiple of 8 images a device, got 20"),
        ("gpu", dict(dtype=np.dtype(np.float64)), "GPUs take bfloat16 or .*, got float64"),
        ("tpu", dict(dtype=np.dtype(np.float16)), "TPUs take bfloat16 or float32 .*, got float16"),
        ("small_reference", dict(batch=2**17), "would hold 1284505600 scores"),
    ],
)
def test_a_row_says_why_it_does_not_fit(name, changes, why):
    with pytest.raises(InputError, match=f"implementation='{name}' does not fit: .*{why}"):
        mesh = tpu_mesh() if name.startswith("tpu") else gpu_mesh()
        _chosen(name, mesh, **dict(spatial_major=True) | changes)


def test_unknown_implementation():
    with pytest.raises(InputError, match=f"{', '.join(IMPLEMENTATIONS)}, got 'fast'"):
        poca(*make_case(2, 16, 9), key_ratio=0.25, implementation="fast")


def test_block_sizes_need_a_row():
    sizes = {"classes": 4}
    with pytest.raises(InputError, match="block_sizes are those of one implementation"):
        poca(*make_case(2, 16, 9), key_ratio=0.25, block_sizes=sizes)


@pytest.mark.parametrize("module", ["poca", "module"])
def test_examples(module):
    results = doctest.testmod(importlib.import_module(f"noah_jax.heads.noah.{module}"))
    assert results.attempted and not results.failed
