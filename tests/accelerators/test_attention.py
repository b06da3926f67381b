"""Attention by cuDNN on a GPU against the float32 definition."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

from noah_jax import distributed
from noah_jax.nn import attention, cudnn_attention

pytestmark = pytest.mark.gpu

# Tokens, other tokens, heads and channels of DeiT with and without a class token, and of PVT.
SIZES = [(197, 197, 3, 64), (196, 196, 3, 64), (3136, 49, 1, 64), (49, 49, 8, 64), (50, 50, 8, 64)]
TOLERANCES = {"bfloat16": 0.05, "float16": 0.01}  # of the standard deviation


def draw(tokens, others, heads, channels, *, batch=4):
    keys = jax.random.split(jax.random.key(0), 4)
    query, cotangent = (jax.random.normal(k, (batch, tokens, heads, channels)) for k in keys[:2])
    k, v = (jax.random.normal(k, (batch, others, heads, channels)) for k in keys[2:])
    return query, k, v, cotangent


def both_passes(attend, query, keys, values, cotangent):
    out, pullback = jax.vjp(attend, query, keys, values)
    return out, *pullback(cotangent)


@pytest.mark.parametrize("implementation", ["auto", "xla"])
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_and_gradients(size, dtype, implementation):
    exact = draw(*size)
    arguments = [x.astype(dtype) for x in exact]
    attend = functools.partial(attention.attend, implementation=implementation)
    step = jax.jit(functools.partial(both_passes, attend))
    if jax.default_backend() == "gpu":
        calls = step.lower(*arguments).as_text().count("__cudnn$fmha")
        assert calls == (2 if implementation == "auto" else 0)
    definition = functools.partial(jax.nn.dot_product_attention, implementation="xla")
    with jax.default_matmul_precision("highest"):
        wide = [x.astype(jnp.float32) for x in arguments]
        expected = jax.jit(functools.partial(both_passes, definition))(*wide)
    for one, other in zip(step(*arguments), expected, strict=True):
        assert one.dtype == dtype
        assert float(jnp.abs(one - other).max() / other.std()) < TOLERANCES[dtype]


@pytest.mark.parametrize("size", SIZES[:2], ids=str)
def test_the_batch_may_be_split_over_all_devices(size):
    mesh = distributed.make_mesh()
    arguments = [x.astype(jnp.bfloat16) for x in draw(*size, batch=2 * mesh.size)]
    step = jax.jit(functools.partial(both_passes, attention.attend))
    expected = step(*arguments)
    shards = jax.device_put(arguments, NamedSharding(mesh, jax.P("data")))
    with jax.set_mesh(mesh):
        actual = step(*shards)
    for one, other in zip(actual, expected, strict=True):
        assert len(one.sharding.device_set) == mesh.size
        assert float(jnp.abs(one - other).max()) <= 0.02 * float(other.std())


def test_cudnn_is_here():
    if jax.default_backend() == "gpu":
        assert not cudnn_attention.cudnn_is_missing()
