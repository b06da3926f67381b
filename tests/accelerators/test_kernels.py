"""The head's kernel on a GPU or a TPU against the definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from noah_jax import distributed
from noah_jax.heads.noah import poca
from tests.heads.noah.kernel_checks import (
    assert_close,
    assert_large_scores_do_not_overflow,
    assert_refuses_second_derivatives,
    make_case,
    value_and_gradients,
)

pytestmark = [pytest.mark.gpu, pytest.mark.tpu]

# Blocks, channels and classes: narrow and wide blocks, channels and classes that fill no tile.
CASES = [(2, 64, 50), (4, 192, 130), (2, 80, 50), (4, 960, 100)]
TOLERANCES = {jnp.float32: 1e-5, jnp.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def exact():
    """Computes the definition's float32 products in float32."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case, dtype, dropout, kernel):
    arguments = make_case(*case, batch=8)
    options = {"dropout": dropout, "dropout_key": jax.random.key(5)}
    expected = value_and_gradients(*arguments, implementation="reference", **options)
    actual = value_and_gradients(*arguments, dtype=dtype, implementation=kernel, **options)
    assert_close(actual, expected, TOLERANCES[dtype])


@pytest.mark.parametrize("implementation", ["auto", "xla"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_what_the_words_take(implementation, dtype, accelerator):
    if accelerator == "tpu" and dtype == jnp.float16:
        pytest.skip("float16 is not for TPUs")
    arguments = make_case(4, 192, 130, batch=8)
    expected = value_and_gradients(*arguments, implementation="reference")
    actual = value_and_gradients(*arguments, dtype=dtype, implementation=implementation)
    assert_close(actual, expected, TOLERANCES.get(dtype, 1e-2))


def test_large_scores_do_not_overflow(kernel):
    assert_large_scores_do_not_overflow(kernel, *make_case(2, 16, 9, batch=8))


def test_second_derivatives_are_refused(kernel):
    assert_refuses_second_derivatives(kernel, *make_case(2, 16, 9, batch=8))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_batch_may_be_split_over_all_devices(dropout, kernel):
    mesh = distributed.make_mesh()
    features, query, value = make_case(2, 64, 50, batch=8 * mesh.size)
    options = {"key_ratio": 0.25, "dropout": dropout, "dropout_key": jax.random.key(5)}

    def loss(features, query, value, implementation):
        logits = poca(features, query, value, implementation=implementation, **options)
        return (jnp.sin(logits) * jnp.arange(logits.shape[1])).sum(), logits

    def gradients(implementation, *arguments):
        f = functools.partial(loss, implementation=implementation)
        return jax.jit(jax.grad(f, argnums=(0, 1, 2), has_aux=True))(*arguments)

    expected = gradients("reference", features, query, value)
    shards = jax.device_put(features, NamedSharding(mesh, jax.P("data")))
    with jax.set_mesh(mesh):
        actual = gradients(kernel, shards, query, value)
    assert len(actual[1].sharding.device_set) == mesh.size
    assert_close(jax.tree.map(np.asarray, actual), jax.tree.map(np.asarray, expected), 1e-5)
