"""Attentive heads against timm's layers, from a file and, where it is installed, afresh."""

import importlib
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from noah_jax.heads.simpool import SimPoolHead
from tests.heads.timm_weights import load
from tests.helpers import GOLDEN, ROOT

RNGS = nnx.Rngs(0)
HEADS = {
    "simpool": lambda **own: SimPoolHead(8, 8, rngs=RNGS, **own),
    "simpool_gamma": lambda **own: SimPoolHead(8, 8, num_heads=2, gamma=1.25, rngs=RNGS, **own),
}


def _error(name, arrays, **own):
    """Largest difference from timm's output over its standard deviation."""
    prefix = f"{name}/weights/"
    weights = {k.removeprefix(prefix): x for k, x in arrays.items() if k.startswith(prefix)}
    head = HEADS[name](**own)
    load(head, weights)
    if "head.weight" not in weights and "duplicate_pooling" not in weights:  # timm only pools
        head.linear.kernel[...] = jnp.eye(8, 8)
        head.linear.bias[...] = jnp.zeros(8)
    features = arrays[f"{name}/features"].reshape(2, 2, 3, 8)
    actual, expected = head(jnp.asarray(features), train=False), arrays[f"{name}/output"]
    assert actual.shape == expected.shape
    return np.abs(actual - expected).max() / expected.std()


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "timm_heads.npz"))


@pytest.mark.parametrize("name", HEADS)
def test_the_golden_file(name, golden):
    assert _error(name, golden) < 1e-5
    assert _error(name, golden, dtype=jnp.bfloat16) < 0.15


@pytest.mark.parametrize("name", HEADS)
def test_timm_itself(name, monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.syspath_prepend(ROOT / "scripts")
    vectors = importlib.import_module("make_timm_head_vectors")
    assert _error(name, vectors.compute(name, 10)) < 1e-5
    sys.modules.pop("make_timm_head_vectors")
