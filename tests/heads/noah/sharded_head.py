"""Checks the head on four devices against one; run by test_tpu.py in a process of its own."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding

from noah_jax.heads.noah import Projection, poca

_BATCH, _HEAD_NUM, _CLASSES = 64, 2, 9


def step(options, features, query, value):
    """Computes logits and gradients."""

    def loss(features, query, value):
        logits = poca(features, query, value, dropout_key=jax.random.key(5), **dict(options))
        return (jnp.sin(logits) ** 2).sum(), logits

    return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(features, query, value)


def main():
    random = np.random.RandomState(0)
    features = random.standard_normal((_BATCH, 3, 5, 16)).astype(np.float32)
    query, value = (
        Projection(
            random.standard_normal((_HEAD_NUM, 4, _CLASSES)).astype(np.float32),
            random.standard_normal((_HEAD_NUM, _CLASSES)).astype(np.float32),
        )
        for _ in range(2)
    )
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,))
    sharded = jax.device_put(features, NamedSharding(mesh, jax.P("data")))
    weights = jax.device_put((query, value), NamedSharding(mesh, jax.P()))

    def on_mesh(options, *arguments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return step(options, *arguments)

    for form, dropout, spatial_major in (
        ("xla", 0.4, False),
        ("pallas", 0.4, False),
        ("pallas", 0.0, True),
    ):
        options = ("dropout", dropout), ("spatial_major", spatial_major)
        given = ("implementation", "reference"), *options
        expected = jax.jit(step, static_argnums=0)(given, features, query, value)
        expected = jax.tree.leaves(expected)
        given = ("implementation", form), *options
        compiled = jax.jit(on_mesh, static_argnums=0).lower(given, sharded, *weights).compile()
        outputs = jax.tree.leaves(compiled(sharded, *weights))
        for actual, exact in zip(outputs, expected, strict=True):
            error = np.linalg.norm(actual - np.asarray(exact)) / max(np.linalg.norm(exact), 1e-9)
            assert error < 2e-6, (form, actual.shape, error)
        assert outputs[0].sharding.is_equivalent_to(sharded.sharding, 4), (
            form,
            outputs[0].sharding,
        )
        text = compiled.as_text()
        assert not re.search(r"= \S+ (all-gather|all-to-all)\(", text), form
        reductions = len(re.findall(r"all-reduce(?:-start)?\(", text))
        print(form, "all-reduces:", reductions)
        assert reductions <= 4, (form, reductions)


main()
