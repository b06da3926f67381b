"""The GeM head against its definition, and its limits: the mean and the maximum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from noah_jax.heads.gem import GeMHead

FEATURES = jax.random.uniform(jax.random.key(0), (2, 3, 4, 8), minval=-0.1, maxval=2.0)


def _head(**arguments):
    return GeMHead(8, 5, rngs=nnx.Rngs(0), **arguments)


def test_the_definition():
    head = _head(p=2.5)
    clamped = np.maximum(np.asarray(FEATURES, np.float64), 1e-6).reshape(2, 12, 8)
    pooled = (clamped**2.5).mean(1) ** (1 / 2.5)
    expected = pooled @ np.asarray(head.linear.kernel[...]) + np.asarray(head.linear.bias[...])
    np.testing.assert_allclose(head(FEATURES, train=False), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("p", "pool"), [(1.0, np.mean), (100.0, np.max)])
def test_the_limits(p, pool):
    head = _head(p=p)
    pooled = pool(np.maximum(FEATURES, 1e-6).reshape(2, 12, 8), axis=1)
    expected = pooled @ head.linear.kernel[...] + head.linear.bias[...]
    np.testing.assert_allclose(head(FEATURES, train=False), expected, rtol=0.05, atol=0.05)


def test_p_is_learnt_and_bfloat16_is_near():
    head = _head()
    gradient = nnx.grad(lambda head: head(FEATURES, train=False).sum())(head)
    assert jnp.isfinite(gradient["p"][...]).all()
    assert gradient["p"][...] != 0
    small = _head(dtype=jnp.bfloat16)(FEATURES, train=False)
    assert small.dtype == jnp.float32
    np.testing.assert_allclose(small, head(FEATURES, train=False), atol=0.03)
