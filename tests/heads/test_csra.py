"""The CSRA head against its published code, written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from noah_jax.errors import InputError
from noah_jax.heads.csra import TEMPERATURES, CSRAHead
from tests.heads.quick import draw_head, logits, maps

FEATURES = np.random.RandomState(0).standard_normal((2, 3, 4, 8)).astype(np.float32)
CLASSES = np.array([[4, 1], [4, 2]])


def _head(**arguments):
    return draw_head(lambda: CSRAHead(8, 5, **arguments, rngs=nnx.Rngs(0)))


def _published(features, kernel, temperature, lam):
    score = features.reshape(2, 12, 8) @ kernel / np.linalg.norm(kernel, axis=0)
    if temperature == 99:
        return score.mean(1) + lam * score.max(1)
    weights = np.exp(temperature * score)
    return score.mean(1) + lam * (score * weights / weights.sum(1, keepdims=True)).sum(1)


@pytest.mark.parametrize("num_heads", TEMPERATURES)
def test_the_published_formula(num_heads):
    head = _head(num_heads=num_heads, lam=0.3)
    kernels = np.asarray(head.classifier.kernel[...], np.float64)
    assert len(kernels) == len(TEMPERATURES[num_heads]) == num_heads
    features = np.asarray(FEATURES, np.float64)
    expected = sum(
        _published(features, kernel, temperature, 0.3)
        for kernel, temperature in zip(kernels, TEMPERATURES[num_heads], strict=True)
    )
    np.testing.assert_allclose(logits(head, FEATURES), expected, rtol=1e-5, atol=1e-5)


def test_contributions_are_the_logits():
    head = _head(num_heads=4)
    whole = np.asarray(logits(head, FEATURES))
    for classes in (CLASSES, CLASSES[0]):
        parts = jax.tree.map(np.asarray, maps(head, FEATURES, classes, "contributions"))
        assert parts.contributions.shape == parts.attention.shape == (2, 4, 2, 3, 4)
        assert parts.bias.shape == (2, 4, 2)
        chosen = np.take_along_axis(whole, np.broadcast_to(classes, (2, 2)), 1)
        np.testing.assert_allclose(parts.contributions.sum((1, 3, 4)), chosen, atol=1e-5)
        np.testing.assert_allclose(parts.attention.sum((3, 4)), 1, atol=1e-5)
        np.testing.assert_array_equal(parts.attention, maps(head, FEATURES, classes))
    # The last head takes the maximum.
    np.testing.assert_array_equal(
        np.sort(parts.attention[:, -1].reshape(-1, 12))[:, -2:], [[0, 1]] * 4
    )


def test_bfloat16_and_dropout():
    exact = logits(_head(num_heads=2), FEATURES)
    small = logits(_head(num_heads=2, dtype=jnp.bfloat16), FEATURES)
    assert small.dtype == jnp.float32
    np.testing.assert_allclose(small, exact, atol=0.03)
    head = _head(num_heads=2, dropout=0.5)
    np.testing.assert_array_equal(logits(head, FEATURES), exact)
    assert not np.allclose(logits(head, FEATURES, train=True, key=jax.random.key(1)), exact)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 3}, "num_heads of a csra head must be one of 1, 2, 4, 6, 8, got 3"),
        ({"lam": -1}, "lam must be at least 0"),
        ({"lam": float("nan")}, "lam must be at least 0"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        _head(**arguments)
