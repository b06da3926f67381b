"""The MAP head: its attention, its initial weights and its limits; test_timm.py has its numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from noah_jax.errors import InputError
from noah_jax.heads.map import MAPHead, published_num_heads

FEATURES = jax.random.normal(jax.random.key(0), (2, 3, 4, 8))


def _head(**arguments):
    return MAPHead(8, 5, **({"num_heads": 2} | arguments), rngs=nnx.Rngs(0))


def test_the_attention_is_that_of_the_keys():
    head = _head()
    query = np.float64(head.q(head.latent[0, 0])).reshape(2, 4)
    keys = np.float64(head.kv(FEATURES))[..., :8].reshape(2, 12, 2, 4)
    scores = np.exp(np.einsum("hc,blhc->bhl", query, keys) / 2)
    expected = (scores / scores.sum(-1, keepdims=True)).reshape(2, 2, 1, 3, 4)
    actual = head.attention(FEATURES, jnp.array([4, 0, 3]))
    assert actual.shape == (2, 2, 3, 3, 4)
    np.testing.assert_allclose(actual, np.repeat(expected, 3, 2), atol=1e-5)


def test_bfloat16_and_dropout():
    exact = _head()(FEATURES, train=False)
    small = _head(dtype=jnp.bfloat16)(FEATURES, train=False)
    assert small.dtype == jnp.float32
    np.testing.assert_allclose(small, exact, atol=0.1)
    head = _head(dropout=0.5)
    np.testing.assert_array_equal(head(FEATURES, train=False), exact)
    assert not np.allclose(head(FEATURES, train=True, key=jax.random.key(1)), exact)


def test_the_initial_weights():
    head = MAPHead(128, 3, rngs=nnx.Rngs(0))
    assert head.num_heads == 2
    # Cut at two standard deviations, a normal has 0.8796 of its own.
    assert np.std(head.latent[...]) == pytest.approx(0.88 / 128**0.5, rel=0.2)
    for kernel, fans in ((head.q, 256), (head.kv, 256), (head.proj, 256), (head.mlp.fc1, 640)):
        bound = (6 / fans) ** 0.5
        assert 0.99 * bound < np.abs(kernel.kernel[...]).max() <= bound


@pytest.mark.parametrize(
    ("channels", "heads"), [(768, 12), (192, 3), (2048, 32), (1280, 20), (24, 1), (100, 2)]
)
def test_as_many_heads_as_published(channels, heads):
    assert published_num_heads(channels) == heads


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="must divide the 8 channels"):
        _head(num_heads=3)
    with pytest.raises(InputError, match="mlp_ratio must leave"):
        _head(mlp_ratio=0.1)
