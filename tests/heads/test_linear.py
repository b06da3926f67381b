"""The linear head pools any map."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from noah_jax.heads.linear import LinearHead


def test_linear_head_pools_any_map():
    head = LinearHead(
        6, 4, dropout=0.5, kernel_init=nnx.initializers.normal(1), rngs=nnx.Rngs(params=0)
    )
    x = jnp.asarray(np.random.RandomState(0).standard_normal((3, 4, 5, 6)), jnp.float32)
    logits = head(x, train=False)
    np.testing.assert_allclose(logits, head(x.mean((1, 2)), train=False), rtol=1e-5)
    dropped = head(x, train=True, key=jax.random.key(0))
    assert not np.allclose(dropped, logits)
