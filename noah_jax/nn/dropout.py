"""Computes dropout masks as a function of a key and of an element's position.

A mask is a hash of the element's indices, not a stream of random numbers. So any shard of a mask,
computed in any order on any number of devices, belongs to the same whole. On accelerators the
hash is some ten times cheaper than `jax.random`, and kernels can compute it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from noah_jax.errors import InputError

_BITS = 24  # of a uniform number


class MicroBatchKey(NamedTuple):
    """The random key of a batch, for some of its images. Models take it like any other key.

    Attributes:
      key: A random key.
      images: int32 `[micro-batch]`, the images' indices in the whole batch. Those on one device
        are consecutive.
    """

    key: jax.Array
    images: jax.Array


Key = jax.Array | MicroBatchKey


class Seeds(NamedTuple):
    """The seeds that masks are computed from.

    Attributes:
      words: int32 `[2]`, from the key.
      images: int32 `[batch]`, the images' indices in the whole batch.
    """

    words: jax.Array
    images: jax.Array


def check_key(key: Key | None, *, needed: bool) -> None:
    """Raises an InputError if a head that drops values while training gets no random key."""
    if needed and key is None:
        raise InputError("training with dropout needs a random key: pass key=")


def split(key: Key, num: int) -> Sequence[Key]:
    """Splits a key into `num` independent keys for the same images."""
    if isinstance(key, MicroBatchKey):
        return [MicroBatchKey(k, key.images) for k in jax.random.split(key.key, num)]
    return list(jax.random.split(key, num))


def split_key(key: Key | None, num: int) -> Sequence[Key | None]:
    """Splits a key into `num` independent keys; `None` becomes `num` times `None`."""
    return [None] * num if key is None else split(key, num)


def fold_in(key: Key, data: int) -> Key:
    """Derives another key for the same images from a number."""
    if isinstance(key, MicroBatchKey):
        return MicroBatchKey(jax.random.fold_in(key.key, data), key.images)
    return jax.random.fold_in(key, data)


def seeds_of(key: Key, batch: int) -> Seeds:
    """Returns the seeds of a key's masks for `batch` images."""
    if isinstance(key, MicroBatchKey):
        key, images = key
    else:
        images = jnp.arange(batch, dtype=jnp.int32)
    bits = jax.random.bits(key, (2,), jnp.uint32)
    return Seeds(jax.lax.bitcast_convert_type(bits, jnp.int32), images)


def kept_images(key: Key, batch: int, rate: float) -> jax.Array:
    """Returns which images dropout keeps, bool `[batch]`."""
    words, images = seeds_of(key, batch)
    zero = jnp.int32(0)
    return kept(row_seed((words[0], words[1]), images, zero, zero), zero, rate)


def kept_elements(key: Key, shape: tuple[int, ...], rate: float) -> jax.Array:
    """Returns which elements dropout keeps, bool of the shape `[batch, ..., channels]`."""
    rows = jnp.arange(math.prod(shape[1:-1]), dtype=jnp.int32)
    words, images = seeds_of(key, shape[0])
    seeds = row_seed((words[0], words[1]), images[:, None], rows, jnp.int32(0))
    seeds = seeds.reshape(*shape[:-1], 1)
    return kept(seeds, jnp.arange(shape[-1], dtype=jnp.int32), rate)


def row_seeds(seeds: Seeds, head_num: int, classes: int) -> jax.Array:
    """Seeds of whole masks, int32 `[batch, head_num, classes]`; see `row_seed`."""
    shape = (len(seeds.images), head_num, classes)
    block, class_index = (jax.lax.broadcasted_iota(jnp.int32, shape, i) for i in (1, 2))
    words = seeds.words
    return row_seed((words[0], words[1]), seeds.images[:, None, None], block, class_index)


def row_seed(
    words: tuple[jax.Array, jax.Array],
    image: jax.Array,
    block: jax.Array,
    class_index: jax.Array,
) -> jax.Array:
    """Seed of a mask over positions.

    Args:
      words: The two words of `Seeds`.
      image: Index of the image in the whole batch.
      block: Index of the head's block.
      class_index: Index of the class.

    Returns:
      int32 of the shape to which the indices broadcast.
    """
    first, second = words
    return _mixed(_mixed(_mixed(first ^ image) + second ^ block) ^ class_index)


def kept(seeds: jax.Array, position: jax.Array, rate: float) -> jax.Array:
    """Returns which elements dropout keeps; each is true with probability `1 - rate`.

    Args:
      seeds: Seeds from `row_seed`.
      position: Position in the feature map, of a shape that broadcasts with `seeds`.
      rate: Dropout rate.
    """
    bits = _mixed(seeds + position * _int32(0x9E3779B9))
    uniform = jax.lax.shift_right_logical(bits, jnp.int32(32 - _BITS))
    return uniform >= round(rate * 2**_BITS)


def _mixed(x: jax.Array) -> jax.Array:
    """A bijection of 32 bits in which every bit depends on all bits; constants by C. Wellons."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ jax.lax.shift_right_logical(x, jnp.int32(shift))) * _int32(factor)
    return x ^ jax.lax.shift_right_logical(x, jnp.int32(16))


def _int32(value: int) -> np.int32:
    return np.uint32(value).astype(np.int32)
