"""Dropout masks as a function of a key and of where an element stands.

A hash of the element's indices instead of a stream of random numbers: any part of a mask, in
any order and on any number of devices, is the part of the same whole. It is some ten times
cheaper than `jax.random` on accelerators, and kernels can compute it.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_BITS = 24  # of a uniform number


class PartKey(NamedTuple):
    """The random key of a batch, for a part of its images; models take it as any key.

    Attributes:
      key: a random key.
      images: int32 `[part]`, the images' numbers in the whole batch; those that lie on one
        device are consecutive.
    """

    key: jax.Array
    images: jax.Array


Key = jax.Array | PartKey


class Seeds(NamedTuple):
    """What masks are made of.

    Attributes:
      words: int32 `[2]`, of the key.
      images: int32 `[batch]`, as of `PartKey`.
    """

    words: jax.Array
    images: jax.Array


def split(key: Key, num: int) -> Iterable[Key]:
    """`num` independent keys for the same images."""
    if isinstance(key, PartKey):
        return [PartKey(k, key.images) for k in jax.random.split(key.key, num)]
    return jax.random.split(key, num)


def fold_in(key: Key, data: int) -> Key:
    """Another key for the same images, by a number."""
    if isinstance(key, PartKey):
        return PartKey(jax.random.fold_in(key.key, data), key.images)
    return jax.random.fold_in(key, data)


def seeds_of(key: Key, batch: int) -> Seeds:
    """The seeds of a key's masks for a batch, or the part of one that the key is for."""
    if isinstance(key, PartKey):
        key, images = key
    else:
        images = jnp.arange(batch, dtype=jnp.int32)
    bits = jax.random.bits(key, (2,), jnp.uint32)
    return Seeds(jax.lax.bitcast_convert_type(bits, jnp.int32), images)


def kept_images(key: Key, batch: int, rate: float) -> jax.Array:
    """Which images dropout leaves, bool `[batch]`."""
    words, images = seeds_of(key, batch)
    zero = jnp.int32(0)
    return kept(row_seed((words[0], words[1]), images, zero, zero), zero, rate)


def kept_elements(key: Key, shape: tuple[int, ...], rate: float) -> jax.Array:
    """Which elements dropout leaves, bool `[batch, ..., channels]`."""
    rows = jnp.arange(math.prod(shape[1:-1]), dtype=jnp.int32)
    words, images = seeds_of(key, shape[0])
    seeds = row_seed((words[0], words[1]), images[:, None], rows, jnp.int32(0))
    seeds = seeds.reshape(*shape[:-1], 1)
    return kept(seeds, jnp.arange(shape[-1], dtype=jnp.int32), rate)


def row_seeds(seeds: Seeds, head_num: int, classes: int) -> jax.Array:
    """Seeds of whole masks, int32 `[batch, head_num, classes]`; see `row_seed`."""
    shape = (len(seeds.images), head_num, classes)
    block, label = (jax.lax.broadcasted_iota(jnp.int32, shape, i) for i in (1, 2))
    words = seeds.words
    return row_seed((words[0], words[1]), seeds.images[:, None, None], block, label)


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
