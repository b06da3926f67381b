"""Cases and checks that the tests of the head's kernels share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from noah_jax.heads.noah import Projection, poca


def make_case(
    head_num,
    channels,
    num_classes,
    *,
    head_split=True,
    kv_split=True,
    batch=16,
    spatial=(3, 5),
    key_ratio=0.25,
):
    """Makes features and weights of a head."""
    random = np.random.RandomState(0)
    query_channels = int(channels * key_ratio)
    parts = (query_channels, channels - query_channels) if kv_split else (channels, channels)
    weights = []
    for part in parts:
        inputs = part // head_num if head_split else part
        kernel = random.standard_normal((head_num, inputs, num_classes)) / np.sqrt(inputs)
        bias = random.standard_normal((head_num, num_classes))
        weights.append(Projection(kernel.astype(np.float32), bias.astype(np.float32)))
    return random.standard_normal((batch, *spatial, channels)).astype(np.float32), *weights


def tpu_mesh(kind="TPU v5e", cores=1):
    """Makes the abstract mesh of one TPU, under which kernels for TPUs are chosen anywhere."""
    return _abstract_mesh(1, device_kind=kind, num_cores=cores, platform="tpu")


def gpu_mesh(size=1):
    """Makes the abstract mesh of some H100, under which kernels for GPUs are chosen anywhere."""
    return _abstract_mesh(size, device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")


def _abstract_mesh(size, **device):
    known = jax.sharding.AbstractDevice.__annotations__
    # The oldest JAX that we support does not name the platform.
    device = jax.sharding.AbstractDevice(**{key: device[key] for key in device if key in known})
    return jax.sharding.AbstractMesh((size,), ("data",), (AxisType.Auto,), abstract_device=device)


def lowered_for_cuda(function, *arguments):
    """Lowers a function for one H100 that need not be here; returns the program's text."""
    with jax.sharding.use_abstract_mesh(gpu_mesh()):
        lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    return lowered.as_text()


def value_and_gradients(features, query, value, *, dtype=jnp.float32, key_ratio=0.25, **options):
    """Computes logits, and gradients of a loss that weighs every logit differently."""

    def loss(features, query, value):
        logits = poca(features.astype(dtype), query, value, key_ratio=key_ratio, **options)
        weights = jnp.sin(jnp.arange(logits.size)).reshape(logits.shape)
        return (jnp.sin(logits) * weights).sum(), logits

    gradients, logits = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(
        features, query, value
    )
    return logits, gradients


def assert_close(actual, expected, tolerance):
    """Checks arrays, dtypes and shapes; `tolerance` is a fraction of each array's norm."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


def assert_refuses_second_derivatives(implementation, features, query, value):
    """Checks that a kernel says in plain words that it has no second derivatives."""

    def penalty(features):
        run = functools.partial(poca, key_ratio=0.25, implementation=implementation)
        gradient = jax.grad(lambda x: (run(x, query, value) ** 2).sum())(features)
        return (gradient**2).sum()

    with pytest.raises(NotImplementedError, match="implementation='xla'"):
        jax.grad(penalty)(features)


def assert_large_scores_do_not_overflow(implementation, features, query, value):
    """Checks a kernel where one position takes almost all of the attention."""
    query = query._replace(kernel=100 * query.kernel)
    actual, expected = (
        value_and_gradients(features, query, value, implementation=name)
        for name in (implementation, "reference")
    )
    assert np.isfinite(actual[0]).all()
    assert_close(actual, expected, 1e-4)
