"""Makes and runs heads for tests that would else compile every single operation by itself."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def draw_head(make: Callable[[], nnx.Module], seed: int = 0) -> nnx.Module:
    """Returns the head that `make` makes, with weights that NumPy draws instead of JAX.

    Kernels keep the scale of what they sum; vectors are near 1, so that none is constant or 0.
    """
    random = np.random.RandomState(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        drawn = random.standard_normal(leaf.shape)
        if leaf.ndim < 2:
            return jnp.asarray(1 + drawn / 10, leaf.dtype)
        return jnp.asarray(drawn / np.sqrt(leaf.shape[-2]), leaf.dtype)

    graphdef, weights = nnx.split(nnx.eval_shape(make))
    return nnx.merge(graphdef, jax.tree.map(draw, weights))


@functools.partial(jax.jit, static_argnames=("graphdef", "train"))
def _logits(graphdef, weights, features, key, *, train):
    return nnx.merge(graphdef, weights)(features, train=train, key=key)


@functools.partial(jax.jit, static_argnames=("graphdef", "method"))
def _maps(graphdef, weights, features, classes, *, method):
    return getattr(nnx.merge(graphdef, weights), method)(features, classes)


def logits(head: nnx.Module, features, *, train: bool = False, key=None) -> jax.Array:
    """Computes `head(features, train=train, key=key)` in one program."""
    return _logits(*nnx.split(head), features, key, train=train)


def maps(head: nnx.Module, features, classes, method: str = "attention"):
    """Computes `head.attention(features, classes)`, or another method's maps, in one program."""
    return _maps(*nnx.split(head), features, classes, method=method)
