"""Attentive heads against timm's layers, from a file and, where it is installed, afresh."""

import importlib
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from noah_jax.heads.class_attention import ClassAttentionHead
from noah_jax.heads.map import MAPHead
from noah_jax.heads.ml_decoder import MLDecoderHead
from noah_jax.heads.simpool import SimPoolHead
from tests.heads.quick import draw_head, logits
from tests.heads.timm_weights import load
from tests.helpers import GOLDEN, ROOT


def _ml_decoder(**own):
    return MLDecoderHead(8, 7, width=16, hidden=24, rngs=nnx.Rngs(0), **own)


HEADS = {
    "simpool": lambda **own: SimPoolHead(8, 8, rngs=nnx.Rngs(0), **own),
    "simpool_gamma": lambda **own: SimPoolHead(
        8, 8, num_heads=2, gamma=1.25, rngs=nnx.Rngs(0), **own
    ),
    "ml_decoder": lambda **own: _ml_decoder(groups=3, **own),
    "ml_decoder_all": lambda **own: _ml_decoder(groups=100, **own),
    "class_attention": lambda **own: ClassAttentionHead(
        8, 7, head_width=4, mlp_ratio=2.0, rngs=nnx.Rngs(0), **own
    ),
    "map": lambda **own: MAPHead(8, 8, num_heads=2, mlp_ratio=3.0, rngs=nnx.Rngs(0), **own),
}


def _error(name, arrays, **own):
    """Largest difference from timm's output over its standard deviation."""
    prefix = f"{name}/weights/"
    weights = {k.removeprefix(prefix): x for k, x in arrays.items() if k.startswith(prefix)}
    head = draw_head(lambda: HEADS[name](**own))
    load(head, weights)
    if "head.weight" not in weights and "duplicate_pooling" not in weights:  # timm only pools
        head.linear.kernel[...] = jnp.eye(8, 8)
        head.linear.bias[...] = jnp.zeros(8)
    features = arrays[f"{name}/features"].reshape(2, 2, 3, 8)
    actual, expected = logits(head, jnp.asarray(features)), arrays[f"{name}/output"]
    assert actual.shape == expected.shape
    return np.abs(actual - expected).max() / expected.std()


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "timm_heads.npz"))


@pytest.mark.optimised
@pytest.mark.parametrize("name", HEADS)
def test_the_golden_file(name, golden):
    assert _error(name, golden) < 1e-5
    assert _error(name, golden, dtype=jnp.bfloat16) < 0.15


def test_the_file_has_a_head_for_every_case(golden):
    assert {key.partition("/")[0] for key in golden} == set(HEADS)


@pytest.mark.parametrize("name", HEADS)
def test_timm_itself(name, monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.syspath_prepend(ROOT / "scripts")
    vectors = importlib.import_module("make_timm_head_vectors")
    assert _error(name, vectors.compute(name, 10)) < 1e-5
    sys.modules.pop("make_timm_head_vectors")
