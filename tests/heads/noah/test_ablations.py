"""NOAH without its attention and with other merges, against the definition in NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from noah_jax import NOAH
from noah_jax.errors import InputError
from tests.heads.quick import draw_head, logits

BLOCKS, CLASSES, CHANNELS = 3, 7, 24
FEATURES = np.random.RandomState(0).standard_normal((2, 5, 4, CHANNELS)).astype(np.float32)
MERGES = {"sum": np.sum, "mean": np.mean, "max": np.max}
SWITCHES = list(itertools.product((True, False), repeat=2))


def _head(**arguments):
    make = functools.partial(NOAH, CHANNELS, CLASSES, BLOCKS, 0.25, **arguments)
    return draw_head(lambda: make(rngs=nnx.Rngs(params=1)))


def _block_logits(head, *, kv_split, head_split):
    """float64 `[batch, blocks, classes]`, from the definition."""
    x = np.asarray(FEATURES, np.float64).reshape(2, 20, CHANNELS)
    parts = {"query": x[..., :6], "value": x[..., 6:]} if kv_split else {"query": x, "value": x}
    projected = {}
    for name, part in parts.items():
        if (weights := getattr(head, name)) is None:
            continue
        own = np.split(part, BLOCKS, -1) if head_split else [part] * BLOCKS
        kernel, bias = (np.asarray(w[...], np.float64) for w in (weights.kernel, weights.bias))
        projected[name] = np.stack([own[n] @ kernel[n] + bias[n] for n in range(BLOCKS)], 1)
    if "query" in projected:
        weights = np.exp(projected["query"])
        weights /= weights.sum(2, keepdims=True)
    else:
        weights = 1 / 20
    return (weights * projected["value"]).sum(2)


def _cases():
    """All forms as published, two of them with every switch, and the others as slow tests."""
    for attention, merge in itertools.product(("softmax", "uniform"), MERGES):
        quick = (attention, merge) in (("softmax", "mean"), ("uniform", "max"))
        for switches in SWITCHES:
            marks = () if quick or all(switches) else pytest.mark.slow
            yield pytest.param(*switches, attention, merge, marks=marks)


@pytest.mark.parametrize(("head_split", "kv_split", "attention", "merge"), list(_cases()))
def test_logits_and_contributions(head_split, kv_split, attention, merge):
    switches = {"head_split": head_split, "kv_split": kv_split}
    head = _head(attention=attention, merge=merge, **switches)
    expected = MERGES[merge](_block_logits(head, **switches), axis=1)

    @jax.jit
    def run(features):
        return head(features, train=False), head.contributions(features, jnp.arange(CLASSES))

    computed, parts = run(FEATURES)
    np.testing.assert_allclose(computed, expected, atol=2e-5)
    total = parts.contributions.sum((1, 3, 4)) + parts.bias.sum(1)
    np.testing.assert_allclose(total, expected, atol=2e-5)
    np.testing.assert_allclose(parts.attention.sum((3, 4)), 1, atol=1e-5)


@pytest.mark.parametrize(("attention", "merge"), [("uniform", "sum"), ("softmax", "max")])
def test_dropout_drops_values_and_keeps_the_mean(attention, merge):
    head = _head(attention=attention, merge=merge, dropout=0.5)
    keys = jax.random.split(jax.random.key(3), 400)
    once, again, other = (logits(head, FEATURES, train=True, key=keys[i]) for i in (0, 0, 1))
    np.testing.assert_array_equal(once, again)
    assert not np.allclose(once, other)
    if attention == "uniform":
        drop = jax.jit(jax.vmap(lambda key: head(FEATURES, train=True, key=key)))
        np.testing.assert_allclose(np.mean(drop(keys), 0), logits(head, FEATURES), atol=0.1)


@pytest.mark.parametrize("implementation", ["chunked", "reference"])
def test_the_maximum_runs_in_every_form(implementation):
    arguments = {"merge": "max", "attention": "softmax"}
    fast = logits(_head(implementation=implementation, **arguments), FEATURES)
    np.testing.assert_allclose(fast, logits(_head(**arguments), FEATURES), atol=2e-5)


def test_values_that_do_not_fit():
    with pytest.raises(InputError, match="merge must be sum or mean or max, got 'min'"):
        _head(merge="min")
    with pytest.raises(InputError, match="attention='uniform' has one implementation"):
        _head(attention="uniform", implementation="tpu")
