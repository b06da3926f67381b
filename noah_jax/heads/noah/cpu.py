"""Computes the head in loops over blocks and chunks of their classes, for CPUs.

The arithmetic is that of `chunked.py`. Nothing is rearranged beforehand: every block cuts its
channels out of the feature map, every chunk cuts its classes out of the weights, and gradients
are added in place. Besides the results, only the channels of one block and one chunk are in
memory. (On TPUs, slices of a map whose last axis is the channels would be copies in another
layout.)
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim

from noah_jax.heads.noah.chunked import Residuals, attend, differentiate, scaled_mask
from noah_jax.heads.noah.operands import (
    PocaInputs,
    PocaShape,
    add_bias,
    flatten_positions,
)
from noah_jax.nn.dropout import Seeds
from noah_jax.nn.dtypes import wide_dtype, wide_einsum

_COMMON_BATCH = 32  # a symbolic batch, of `jax.export`, is planned as a common one


class CpuPlan(NamedTuple):
    """What a chunk is.

    Attributes:
      chunks: Chunks that make up the classes of a block; the last two may overlap.
      classes: Classes in a chunk.
      head_split: Whether each block sees only its own channels.
      value_start: First of the channels that give values.
      dropout: Dropout rate on the values; 0 if it is off.
    """

    chunks: int
    classes: int
    head_split: bool
    value_start: int
    dropout: float


def cpu_plan(
    shape: PocaShape, *, scores: int = 2**19, tile: int = 64, fewest_classes: int = 128
) -> CpuPlan:
    """Plans the chunks.

    Args:
      shape: Shape of the head.
      scores: About how many scores a chunk has. The default is as many as the caches of a few
        CPU cores hold beside as many values; twice as many are 5 % faster on ResNet-50's map and
        take a third more memory.
      tile: The classes of a chunk are a multiple of it; products of a few fewer take longer.
      fewest_classes: Fewest classes of a chunk, below which products are not efficient.
    """
    images = _COMMON_BATCH if is_symbolic_dim(shape.batch) else shape.batch
    limit = scores // max(images * shape.positions, 1)
    chunks = math.ceil(shape.num_classes / max(limit // tile * tile, fewest_classes))
    classes = math.ceil(shape.num_classes / chunks / tile) * tile
    value_start = shape.part_channels[0] if shape.split.kv_split else 0
    return CpuPlan(
        chunks,
        min(classes, shape.num_classes),
        shape.split.head_split,
        value_start,
        shape.dropout,
    )


def cpu_poca(plan: CpuPlan, inputs: PocaInputs) -> jax.Array:
    """Computes the logits as `reference_poca` does, by the plan of `cpu_plan`."""
    features, weights = flatten_positions(inputs.features), inputs.weights
    if inputs.seeds is not None:
        return _pairwise(plan, features, tuple(weights), inputs.seeds)
    return add_bias(_pairwise(plan, features, weights[:2], None), weights.value_bias)


# Both kernels, and the value's bias if dropout falls on it; `[head_num, ..., classes]`.
_Arrays = tuple[jax.Array, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pairwise(
    plan: CpuPlan, features: jax.Array, weights: _Arrays, seeds: Seeds | None
) -> jax.Array:
    """Computes the logits, `[batch, classes]`."""
    return _forward(plan, features, weights, seeds)[0]


def _forward(
    plan: CpuPlan, features: jax.Array, weights: _Arrays, seeds: Seeds | None
) -> tuple[jax.Array, tuple]:
    def add_block(logits: jax.Array, block: jax.Array) -> tuple[jax.Array, Residuals]:
        channels = _cut_channels(plan, block, features, weights)

        def add_chunk(logits: jax.Array, index: jax.Array) -> tuple[jax.Array, Residuals]:
            window, chunk = _cut_classes(plan, block, index, weights)
            mask = _chunk_mask(plan, block, window, features, seeds)
            scores, values = _scores_and_values(mask, *channels, *chunk)
            shape = (*features.shape[:2], plan.classes)
            residuals = attend(scores.reshape(shape), values.reshape(shape))
            out = jnp.where(window.own, residuals.out, 0)
            return _add_at(logits, (jnp.int32(0), window.class_index), out), residuals

        return jax.lax.scan(add_chunk, logits, _indices(plan.chunks))

    head_num, _, num_classes = weights[0].shape
    shape = features.shape[0], num_classes
    zeros = jnp.zeros_like(features, wide_dtype(features.dtype), shape)
    logits, residuals = jax.lax.scan(add_block, zeros, _indices(head_num))
    return logits, (features, weights, seeds, residuals)


def _backward(plan: CpuPlan, saved: tuple, cotangent: jax.Array) -> tuple[jax.Array, _Arrays, None]:
    features, weights, seeds, residuals = saved

    def add_block(totals: _Arrays, inputs: tuple) -> tuple[_Arrays, None]:
        block, residuals = inputs
        channels = _cut_channels(plan, block, features, weights)

        def add_chunk(totals: _Arrays, inputs: tuple) -> tuple[_Arrays, None]:
            index, residuals = inputs
            window, chunk = _cut_classes(plan, block, index, weights)
            mask = _chunk_mask(plan, block, window, features, seeds)
            (scores, values), pull = jax.vjp(
                functools.partial(_scores_and_values, mask), *channels, *chunk
            )
            upstream = jax.lax.dynamic_slice_in_dim(
                cotangent, window.class_index, plan.classes, axis=1
            )
            upstream = jnp.where(window.own, upstream, 0)
            # The gradients of the scores then have the shape of the scores and reuse their memory.
            repeat = functools.partial(_repeat_for_positions, features.shape[1])
            rows = jax.tree.map(repeat, (residuals, upstream))
            d_query_part, d_value_part, *d_chunk = pull(differentiate(scores, values, *rows))
            d_features, *d_weights = totals
            for start, gradient in zip(
                _channel_starts(plan, block, weights), (d_query_part, d_value_part), strict=True
            ):
                gradient = gradient.reshape(*features.shape[:2], -1)
                d_features = _add_at(d_features, start, gradient)
            return (d_features, *map(_add_at, d_weights, window.starts, d_chunk)), None

        return jax.lax.scan(add_chunk, totals, (_indices(plan.chunks), residuals))

    arrays = (features, *weights)
    zeros = tuple(jnp.zeros_like(x, wide_dtype(x.dtype)) for x in arrays)
    totals, _ = jax.lax.scan(add_block, zeros, (_indices(weights[0].shape[0]), residuals))
    d_features, *d_weights = (
        total.astype(x.dtype) for total, x in zip(totals, arrays, strict=True)
    )
    return d_features, tuple(d_weights), None


_pairwise.defvjp(_forward, _backward)


def _indices(count: int) -> jax.Array:
    return jnp.arange(count, dtype=jnp.int32)


def _add_at(total: jax.Array, start: tuple, gradient: jax.Array) -> jax.Array:
    """Adds the gradient of the window that begins at `start` to `total`."""
    old = jax.lax.dynamic_slice(total, start, gradient.shape)
    return jax.lax.dynamic_update_slice(total, old + gradient.astype(old.dtype), start)


def _channel_starts(plan: CpuPlan, block: jax.Array, weights: _Arrays) -> tuple[tuple, tuple]:
    """Finds where the query and value channels of a block begin in the feature map."""
    zero = jnp.int32(0)  # all starts have one dtype, also where integers are 64 bits wide
    own = block if plan.head_split else zero
    query_in, value_in = (kernel.shape[1] for kernel in weights[:2])
    return (zero, zero, own * query_in), (zero, zero, plan.value_start + own * value_in)


def _cut_channels(
    plan: CpuPlan, block: jax.Array, features: jax.Array, weights: _Arrays
) -> list[jax.Array]:
    """Cuts out the query and value channels of a block, each `[batch * positions, channels]`.

    They are matrices, so that the gradients of the weights are products of them as they lie.
    """
    channels = []
    for start, kernel in zip(_channel_starts(plan, block, weights), weights[:2], strict=True):
        shape = (*features.shape[:2], kernel.shape[1])
        part = jax.lax.dynamic_slice(features, start, shape)
        channels.append(part.reshape(-1, kernel.shape[1]))
    return channels


class _Window(NamedTuple):
    """Where a chunk lies.

    Attributes:
      class_index: Its first class.
      own: Which of its classes the chunk before it does not have, bool `[classes]`.
      starts: Where its window of each of the weights begins.
    """

    class_index: jax.Array
    own: jax.Array
    starts: list[tuple]


def _cut_classes(
    plan: CpuPlan, block: jax.Array, index: jax.Array, weights: _Arrays
) -> tuple[_Window, list[jax.Array]]:
    """Finds where a chunk of a block lies, and cuts its classes out of the block's weights."""
    class_index = jnp.minimum(index * plan.classes, weights[0].shape[-1] - plan.classes)
    own = class_index + jnp.arange(plan.classes) >= index * plan.classes
    starts = [(block, *[jnp.int32(0)] * (x.ndim - 2), class_index) for x in weights]
    chunk = [
        jax.lax.dynamic_slice(x, start, (1, *x.shape[1:-1], plan.classes))
        for x, start in zip(weights, starts, strict=True)
    ]
    return _Window(class_index, own, starts), chunk


def _scores_and_values(
    mask: jax.Array | None,
    query_part: jax.Array,
    value_part: jax.Array,
    query_kernel: jax.Array,
    value_kernel: jax.Array,
    value_bias: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Computes scores and values of a chunk, wide `[batch * positions, classes]`."""
    scores = wide_einsum("rd,dk->rk", query_part, query_kernel[0])
    values = wide_einsum("rd,dk->rk", value_part, value_kernel[0])
    if value_bias is not None:
        values = values + value_bias.astype(values.dtype)
    return scores, values if mask is None else values * mask.reshape(values.shape)


def _repeat_for_positions(positions: int, x: jax.Array) -> jax.Array:
    """Repeats `[batch, classes]` for each position: `[batch * positions, classes]`."""
    batch, classes = x.shape
    return jnp.broadcast_to(x[:, None], (batch, positions, classes)).reshape(-1, classes)


def _chunk_mask(
    plan: CpuPlan, block: jax.Array, window: _Window, features: jax.Array, seeds: Seeds | None
) -> jax.Array | None:
    if seeds is None:
        return None
    shape = (1, *features.shape[:2], plan.classes)
    start = block, window.class_index
    return scaled_mask(seeds, shape, start, plan.dropout, features.dtype)[0]
