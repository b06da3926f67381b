"""Attention and its own backward pass, beside JAX's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from noah_jax.aot import hlo, targets
from noah_jax.nn import attention


def _normal(*shape, seed):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


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
    query, cotangent = (_normal(2, tokens, heads, 8, seed=seed) for seed in (0, 1))
    k, v = (_normal(2, others, heads, 8, seed=seed) for seed in (2, 3))

    @functools.partial(jax.jit, static_argnums=0)
    def both(form):
        out, pullback = jax.vjp(form, query, k, v)
        return out, pullback(cotangent)

    expected, native = both(functools.partial(jax.nn.dot_product_attention, implementation="xla"))
    out, own = both(attention.attend)
    np.testing.assert_allclose(out, expected, atol=1e-6)
    for ours, theirs in zip(own, native, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("others", [5, 9])  # fewer keys than channels, and more
def test_the_attentions_gradient_has_a_gradient(others):
    query, along = (_normal(2, 6, 2, 8, seed=seed) for seed in (0, 1))
    k, v = (_normal(2, others, 2, 8, seed=seed) for seed in (2, 3))

    @functools.partial(jax.jit, static_argnums=0)
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
