"""Dropout masks as a function of a key and of where an element stands.

A hash of the element's indices instead of a stream of random numbers: any part of a mask, in
any order and on any number of devices, is the part of the same whole. It is some ten times
cheaper than `jax.random` on accelerators, and kernels can compute it.
"""

import jax
import jax.numpy as jnp
import numpy as np

_BITS = 24  # of a uniform number


def key_words(key: jax.Array) -> jax.Array:
    """A random key as two int32 words, the seeds of its mask."""
    return jax.lax.bitcast_convert_type(jax.random.bits(key, (2,), jnp.uint32), jnp.int32)


def row_seeds(words: jax.Array, batch: int, head_num: int, classes: int) -> jax.Array:
    """Seeds of whole masks, int32 `[batch, head_num, classes]`; see `row_seed`."""
    indices = (jax.lax.broadcasted_iota(jnp.int32, (batch, head_num, classes), i) for i in range(3))
    return row_seed((words[0], words[1]), *indices)


def row_seed(
    words: tuple[jax.Array, jax.Array], image: jax.Array, block: jax.Array, label: jax.Array
) -> jax.Array:
    """Seed of the mask over positions; int32 of the shape the indices broadcast to.

    Args:
      words: of the key.
      image: its number in the whole batch.
      block: the head's block.
      label: the class.
    """
    first, second = words
    return _mixed(_mixed(_mixed(first ^ image) + second ^ block) ^ label)


def kept(seeds: jax.Array, position: jax.Array, rate: float) -> jax.Array:
    """Which elements dropout leaves, true with probability `1 - rate`.

    Args:
      seeds: by `row_seed`.
      position: in the feature map.
      rate: of the dropout.
    """
    bits = _mixed(seeds + position * _int32(0x9E3779B9))
    uniform = jax.lax.shift_right_logical(bits, jnp.int32(32 - _BITS))
    return uniform >= round(rate * 2**_BITS)


def _mixed(x: jax.Array) -> jax.Array:
    """A bijection of 32 bits in which each bit depends on all; constants by C. Wellons."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ jax.lax.shift_right_logical(x, jnp.int32(shift))) * _int32(factor)
    return x ^ jax.lax.shift_right_logical(x, jnp.int32(16))


def _int32(value: int) -> np.int32:
    return np.uint32(value).astype(np.int32)
