"""The GELU against its definition and JAX's own gradient."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from noah_jax.nn.gelu import gelu


def test_gelu_is_exact():
    x = jnp.linspace(-9, 9, 1001)
    expected = [0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x.tolist()]
    np.testing.assert_allclose(gelu(x), expected, atol=1e-6)
    slope = jax.vmap(jax.grad(gelu))(x)
    np.testing.assert_allclose(
        slope, jax.vmap(jax.grad(functools.partial(jax.nn.gelu, approximate=False)))(x), atol=1e-6
    )
