"""Which implementation of the head runs where; asking for one by name; the examples."""

import doctest
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from noah_jax.errors import InputError
from noah_jax.heads.noah import IMPLEMENTATIONS, poca
from noah_jax.heads.noah.operands import ChannelSplit, PocaShape
from noah_jax.heads.noah.poca import ROWS, choose
from tests.heads.noah.kernel_checks import make_case, tpu_mesh, value_and_gradients


def _shape(**changes):
    shape = PocaShape(32, (7, 7), 64, 4, 50, jnp.dtype(jnp.bfloat16), ChannelSplit(1 / 4))
    return shape._replace(**changes)


def _chosen(implementation, **changes):
    """Chooses on one TPU, or emulated; gives the names of the rows by platform."""
    with jax.sharding.use_abstract_mesh(tpu_mesh()):
        choices = choose(implementation, _shape(**changes))
    return {platform: choice.name for platform, choice in choices.items()}


_PLAIN = {"cpu": "cpu", "default": "chunked"}


def test_auto_takes_the_tpu_kernel_in_bfloat16():
    assert _chosen("auto") == {"tpu": "tpu"} | _PLAIN
    assert _chosen("auto", spatial_major=True) == {"tpu": "tpu_map"} | _PLAIN
    assert _chosen("auto", spatial_major=True, dropout=0.1) == {"tpu": "tpu"} | _PLAIN
    assert _chosen("auto", batch=24) == _PLAIN
    assert _chosen("auto", dtype=np.dtype(np.float32)) == _PLAIN
    assert _chosen("auto", dtype=np.dtype(np.float16)) == _PLAIN


def test_pallas_takes_a_kernel_where_one_fits():
    kernels = {"tpu": "tpu", "cuda": "gpu", "cpu": "tpu_interpret", "default": "chunked"}
    assert _chosen("pallas") == kernels
    assert _chosen("pallas", dtype=np.dtype(np.float32)) == kernels
    of_maps = kernels | {"tpu": "tpu_map", "cpu": "tpu_map_interpret"}
    assert _chosen("pallas", spatial_major=True) == of_maps
    assert _chosen("pallas", batch=24) == {"cuda": "gpu"} | _PLAIN
    assert _chosen("pallas", dtype=np.dtype(np.float16)) == _PLAIN


def test_without_a_mesh_nothing_says_how_to_split_the_batch():
    with pytest.raises(InputError, match=r"'tpu' does not fit: .*use jax.set_mesh"):
        choose("tpu", _shape())
    assert "tpu" not in choose("auto", _shape())


def test_xla_takes_no_kernel():
    assert _chosen("xla") == _PLAIN
    assert _chosen("reference") == {"default": "reference"}


def test_a_row_is_taken_by_its_name():
    for name, row in ROWS.items():
        bound = row.platform in ("tpu", "cuda")  # compiled kernels run nowhere else
        platform = row.platform if bound else "default"
        assert _chosen(name, spatial_major="map" in name) == {platform: name}


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
        ("tpu", dict(batch=24), "multiple of 16 images a device, got 24"),
        ("gpu", dict(dtype=np.dtype(np.float64)), "bfloat16 or float32 features, got float64"),
    ],
)
def test_a_row_says_why_it_does_not_fit(name, changes, why):
    with pytest.raises(InputError, match=f"implementation='{name}' does not fit: .*{why}"):
        _chosen(name, **dict(spatial_major=True) | changes)


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
