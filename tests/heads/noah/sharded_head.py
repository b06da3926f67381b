"""Checks the head on four devices against one; run by test_tpu.py in a process of its own."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding

from noah_jax.heads.noah import poca
from tests.heads.noah.kernel_checks import make_case

_DEVICES, _HEAD_NUM, _CLASSES = 4, 2, 9


class _Case(NamedTuple):
    """A head: what computes it, and what decides which kernel does."""

    form: str
    images: int  # on each device
    key_ratio: float
    dropout: float = 0.0
    spatial_major: bool = False


_CASES = (
    _Case("xla", 16, 0.25, dropout=0.4),
    _Case("pallas", 16, 0.25, dropout=0.4),
    _Case("pallas", 16, 0.25, spatial_major=True),
    _Case("pallas", 128, 0.5),
)


def step(form, case, features, query, value):
    """Computes logits and gradients."""

    def loss(features, query, value):
        logits = poca(
            features,
            query,
            value,
            key_ratio=case.key_ratio,
            dropout=case.dropout,
            dropout_key=jax.random.key(5),
            implementation=form,
            spatial_major=case.spatial_major,
        )
        return (jnp.sin(logits) ** 2).sum(), logits

    return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(features, query, value)


def main():
    mesh = jax.make_mesh((_DEVICES,), ("data",), (AxisType.Auto,))

    def on_mesh(form, case, *arguments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return step(form, case, *arguments)

    for case in _CASES:
        form, images = case.form, _DEVICES * case.images
        features, query, value = make_case(
            _HEAD_NUM, 32, _CLASSES, batch=images, key_ratio=case.key_ratio
        )
        sharded = jax.device_put(features, NamedSharding(mesh, jax.P("data")))
        weights = jax.device_put((query, value), NamedSharding(mesh, jax.P()))
        expected = jax.jit(step, static_argnums=(0, 1))("reference", case, features, query, value)
        expected = jax.tree.leaves(expected)
        jitted = jax.jit(on_mesh, static_argnums=(0, 1))
        compiled = jitted.lower(form, case, sharded, *weights).compile()
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
