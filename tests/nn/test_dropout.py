"""Statistics of the dropout masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from noah_jax.nn import dropout


@functools.partial(jax.jit, static_argnames=("shape", "rate"))
def _kept(key, shape, rate):
    batch, head_num, classes, positions = shape
    seeds = dropout.row_seeds(dropout.seeds_of(key, batch), head_num, classes)
    return dropout.kept(seeds[..., None], jnp.arange(positions), rate)


def _mask(key, shape, rate):
    return np.asarray(_kept(key, shape, rate))


@pytest.mark.parametrize("rate", [0.02333, 0.1, 0.5, 0.9])
def test_rate(rate):
    mask = _mask(jax.random.key(0), (8, 4, 100, 196), rate)
    deviation = np.sqrt(rate * (1 - rate) / mask.size)
    assert abs(mask.mean() - (1 - rate)) < 4 * deviation
    # Of every row and column too: sums spread as independent draws do.
    for axis in range(4):
        means = mask.mean(tuple(i for i in range(4) if i != axis))
        expected = np.sqrt(rate * (1 - rate) / (mask.size / len(means)))
        assert np.abs(means - (1 - rate)).max() < 5 * expected


@pytest.mark.parametrize("axis", range(4))
def test_neighbours_are_independent(axis):
    mask = _mask(jax.random.key(1), (8, 4, 100, 196), 0.5) - 0.5
    for distance in (1, 2, 3):
        ahead, behind = np.split(mask, [distance], axis)[1], np.split(mask, [-distance], axis)[0]
        correlation = 4 * (ahead * behind).mean()
        assert abs(correlation) < 5 / np.sqrt(ahead.size)


def test_keys_are_independent():
    shape = (4, 4, 50, 196)
    masks = [_mask(jax.random.fold_in(jax.random.key(0), i), shape, 0.5) - 0.5 for i in range(20)]
    correlations = 4 * np.einsum("ix,jx->ij", *[np.reshape(masks, (20, -1))] * 2) / masks[0].size
    assert np.abs(correlations - np.eye(20)).max() < 5 / np.sqrt(masks[0].size)


def test_the_mean_of_many_masks_is_even():
    masks = [_mask(jax.random.key(i), (2, 2, 5, 49), 0.4) for i in range(2000)]
    error = np.abs(np.mean(masks, 0) - 0.6) / np.sqrt(0.24 / 2000)
    assert error.max() < 4.8
    assert 0.9 < error.std() / np.sqrt(1 - 2 / np.pi) < 1.1
