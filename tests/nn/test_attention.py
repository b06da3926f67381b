"""Attention and its own backward pass, beside JAX's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from noah_jax.aot import hlo, targets
from noah_jax.nn import attention

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("tokens", "others", "heads"),
    [
        (12, 5, 3),
        (9, 9, 1),
        pytest.param(12, 5, 1, marks=pytest.mark.slow),
        pytest.param(9, 9, 3, marks=pytest.mark.slow),
    ],
)
def test_attention_on_cpus_is_jaxs(heads, tokens, others):
    keys = jax.random.split(KEY, 4)
    query, cotangent = (jax.random.normal(k, (2, tokens, heads, 8)) for k in keys[:2])
    k, v = (jax.random.normal(k, (2, others, heads, 8)) for k in keys[2:])
    native = functools.partial(jax.nn.dot_product_attention, implementation="xla")
    expected, native_pullback = jax.vjp(native, query, k, v)
    out, pullback = jax.vjp(attention.attend, query, k, v)
    np.testing.assert_allclose(out, expected, atol=1e-6)
    for ours, theirs in zip(pullback(cotangent), native_pullback(cotangent), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("others", [5, 9])  # fewer keys than channels, and more
def test_the_attentions_gradient_has_a_gradient(others):
    keys = jax.random.split(KEY, 4)
    query = jax.random.normal(keys[0], (2, 6, 2, 8))
    k, v = (jax.random.normal(key, (2, others, 2, 8)) for key in keys[1:3])
    along = jax.random.normal(keys[3], query.shape)

    def curvature(form):
        slope = lambda q: jnp.vdot(jax.grad(lambda q: jnp.sin(form(q, k, v)).sum())(q), along)  # noqa: E731
        return jax.grad(slope)(query)

    native = functools.partial(jax.nn.dot_product_attention, implementation="xla")
    np.testing.assert_allclose(curvature(attention.attend), curvature(native), atol=1e-5)


@pytest.mark.parametrize("heads", [1, 2])
def test_devices_exchange_nothing_of_it_but_gradients(heads):
    pytest.importorskip("libtpu")
    mesh = targets.topology_mesh("v5e:2x2")

    def loss(kernel, x):
        x = (x @ kernel).reshape(*x.shape[:2], heads, -1)
        return attention.attend(x, x[:, :9], x[:, :9]).sum()

    def step(kernel, x):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.grad(loss)(kernel, x)

    def put(shape, *axes):
        sharding = NamedSharding(mesh, jax.P(*axes))
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)

    compiled = jax.jit(step).lower(put((32, 32)), put((64, 256, 32), "data")).compile()
    (reduced,) = hlo.collectives(compiled.as_text(), 4)
    assert reduced.kind == "all-reduce" and reduced.count == 1
