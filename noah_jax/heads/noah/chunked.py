"""Computes the head a chunk of classes at a time in plain XLA, for accelerators.

Scores and values are `[batch, head_num, positions, classes]`, far more numbers than anything
else near the head. Where blocks are narrow, the passes over them cost more than the products
that made them. Here they exist only for a chunk of classes at a time. Forward keeps, besides its
inputs, two numbers for every image, block and class: `lse`, the log-sum-exp of the scores, and
`out`, the output. With upstream gradient `g` and attention `p`, backward computes `p` and the
values `v` again and then

    d_values = p * g
    d_scores = p * g * (v - out)

All implementations share these formulas. Everything here is plain JAX, so it can be
differentiated once more (in reverse mode).
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from noah_jax.heads.noah.operands import (
    PocaInputs,
    PocaShape,
    add_bias,
)
from noah_jax.nn.dropout import Seeds, kept, row_seed
from noah_jax.nn.dtypes import wide_dtype, wide_einsum


class ChunkedPlan(NamedTuple):
    """How the classes are cut into chunks.

    Attributes:
      blocks: Blocks in a chunk: one or all.
      chunks: Chunks that make up the classes of a block.
      classes: Classes in a chunk; the last chunk of a block is padded with zeros.
      dropout: Dropout rate on the values; 0 if it is off.
    """

    blocks: int
    chunks: int
    classes: int
    dropout: float


class Residuals(NamedTuple):
    """What forward keeps for backward besides its inputs.

    Attributes:
      lse: Log-sum-exp of the scores over the positions, `[..., classes]`.
      out: Output of each block, `[..., classes]`.
    """

    lse: Any
    out: Any


def chunked_plan(shape: PocaShape, *, classes: int = 512) -> ChunkedPlan:
    """Plans chunks of all blocks if these have few enough classes, else of one block.

    Args:
      shape: Shape of the head.
      classes: Most classes of a chunk, those of all its blocks counted.
    """
    if shape.head_num * shape.num_classes <= classes and shape.channel_groups == shape.head_num:
        return ChunkedPlan(shape.head_num, 1, shape.num_classes, shape.dropout)
    return plan_of_blocks(shape.num_classes, shape.dropout, classes)


def plan_of_blocks(num_classes: int, dropout: float, classes: int = 512) -> ChunkedPlan:
    """Plans chunks of one block, each of at most `classes` classes."""
    chunks = math.ceil(num_classes / classes)
    return ChunkedPlan(1, chunks, math.ceil(num_classes / chunks), dropout)


def chunked_poca(plan: ChunkedPlan, inputs: PocaInputs) -> jax.Array:
    """Computes the logits as `reference_poca` does, by the plan of `chunked_plan`."""
    parts, weights = inputs.operands()[:2], inputs.weights
    if inputs.seeds is not None:
        return pairwise(plan, parts, tuple(weights), inputs.seeds)
    return add_bias(pairwise(plan, parts, weights[:2], None), weights.value_bias)


def attend(scores: jax.Array, values: jax.Array) -> Residuals:
    """Computes lse and output of `[..., positions, classes]`."""
    # Any shift cancels, so the maximum needs no derivative.
    m = jax.lax.stop_gradient(scores.max(-2))
    weights = jnp.exp(scores - m[..., None, :])
    total = weights.sum(-2)
    return Residuals(m + jnp.log(total), (weights * values).sum(-2) / total)


def differentiate(
    scores: jax.Array, values: jax.Array, residuals: Residuals, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Computes the gradients of scores and values.

    Args:
      scores: `[..., classes]`.
      values: `[..., classes]`.
      residuals: The residuals of `attend`, in shapes that broadcast to that of the scores.
      cotangent: The cotangent of the logits, likewise.

    Returns:
      `(d_scores, d_values)`, each in the shape of the scores.
    """
    d_values = jnp.exp(scores - residuals.lse) * cotangent
    return d_values * (values - residuals.out), d_values


def scaled_mask(
    seeds: Seeds,
    shape: tuple[int, ...],
    start: tuple[jax.Array | int, jax.Array | int],
    rate: float,
    dtype: Any,
) -> jax.Array:
    """Computes what dropout multiplies the values of a chunk by.

    Args:
      seeds: Seeds of the masks.
      shape: `(blocks, batch, positions, classes)` of the chunk.
      start: First block and first class of the chunk.
      rate: Dropout rate.
      dtype: Dtype of the features.
    """
    block, position, class_index = (
        jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 2, 3)
    )
    block, class_index = block + start[0], class_index + start[1]
    words, image = seeds.words, seeds.images[:, None, None]
    rows = row_seed((words[0], words[1]), image, block, class_index)
    return kept(rows, position, rate) / jnp.asarray(1 - rate, wide_dtype(dtype))


# The query's part and the value's part, each `[channel groups, batch, positions, channels]`.
_Parts = tuple[jax.Array, jax.Array]
# Both kernels, and the value's bias if dropout falls on it; `[head_num, ..., classes]`.
_Arrays = tuple[jax.Array, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def pairwise(plan: ChunkedPlan, parts: _Parts, weights: _Arrays, seeds: Seeds | None) -> jax.Array:
    """Computes the logits, `[batch, classes]`.

    Args:
      plan: How the classes are cut.
      parts: The query's part and the value's part, `[channel groups, batch, positions, channels]`.
      weights: Both kernels and, with dropout, perhaps the value's bias;
        `[head_num, ..., classes]`.
      seeds: Seeds of the dropout masks; `None` switches dropout off.
    """
    return _forward(plan, parts, weights, seeds)[0]


def _forward(
    plan: ChunkedPlan, parts: _Parts, weights: _Arrays, seeds: Seeds | None
) -> tuple[jax.Array, tuple]:
    def step(_: None, index: int, chunk: _Arrays) -> tuple[None, Residuals]:
        query_part, value_part, mask = _chunk_inputs(plan, parts, seeds, index)
        query_kernel, *value_weights = chunk
        scores = _project(query_part, query_kernel)
        return None, attend(scores, _masked_values(mask, value_part, *value_weights))

    _, residuals = _for_each_chunk(step, None, _cut(plan, weights))
    batch = parts[0].shape[1]
    head_num, _, num_classes = weights[0].shape
    out = residuals.out.reshape(head_num // plan.blocks, plan.chunks, *residuals.out.shape[1:])
    logits = out.sum((0, 2)).swapaxes(0, 1).reshape(batch, plan.chunks * plan.classes)
    return logits[:, :num_classes], (parts, weights, seeds, residuals)


def _backward(
    plan: ChunkedPlan, saved: tuple, cotangent: jax.Array
) -> tuple[_Parts, _Arrays, None]:
    parts, weights, seeds, residuals = saved
    shape = (cotangent.shape[0], plan.chunks, plan.classes)
    cotangents = _pad_classes(plan, cotangent).reshape(shape).swapaxes(0, 1)

    def step(sums: _Parts, index: int, chunk: _Arrays, residuals: Residuals) -> tuple:
        query_part, value_part, mask = _chunk_inputs(plan, parts, seeds, index)
        query_kernel, *value_weights = chunk
        scores, pull_scores = jax.vjp(_project, query_part, query_kernel)
        values, pull_values = jax.vjp(
            functools.partial(_masked_values, mask), value_part, *value_weights
        )
        upstream = cotangents[index % plan.chunks]
        rows = jax.tree.map(lambda x: x[..., None, :], (residuals, upstream))
        d_scores, d_values = differentiate(scores, values, *rows)
        d_query_part, d_query_kernel = pull_scores(d_scores)
        d_value_part, *d_value_weights = pull_values(d_values)
        start = _first_channel_group(plan, parts, index)
        sums = _add_at(sums[0], d_query_part, start), _add_at(sums[1], d_value_part, start)
        return sums, (d_query_kernel, *d_value_weights)

    zeros = tuple(jnp.zeros_like(part, wide_dtype(part.dtype)) for part in parts)
    sums, d_chunks = _for_each_chunk(step, zeros, _cut(plan, weights), residuals)
    # Chunks come from weights by a linear map, whose transpose puts their gradients together.
    join = jax.linear_transpose(functools.partial(_cut, plan), weights)
    query_sum, value_sum = (
        total.astype(part.dtype) for total, part in zip(sums, parts, strict=True)
    )
    return (query_sum, value_sum), join(d_chunks)[0], None


pairwise.defvjp(_forward, _backward)


def _for_each_chunk(step: Callable, carry: Any, *inputs: Any) -> tuple[Any, Any]:
    """Computes `jax.lax.scan` of `step(carry, index, *chunk_inputs)`, unrolled.

    The first of the inputs is what `_cut` returns.
    """
    outputs = []
    for index in range(inputs[0][0].shape[0]):
        chunk = jax.tree.map(operator.itemgetter(index), inputs)
        # The barriers keep chunks one after another, so that their scores share memory.
        carry, chunk = jax.lax.optimization_barrier((carry, chunk))
        carry, output = jax.lax.optimization_barrier(step(carry, index, *chunk))
        outputs.append(output)
    return carry, jax.tree.map(lambda *chunks: jnp.stack(chunks), *outputs)


def _cut(plan: ChunkedPlan, weights: _Arrays) -> _Arrays:
    """Cuts every `[head_num, ..., classes]` into `[chunks, blocks, ..., classes of a chunk]`."""

    def cut(x: jax.Array) -> jax.Array:
        shape = (x.shape[0] // plan.blocks, plan.blocks, *x.shape[1:-1], plan.chunks, plan.classes)
        x = jnp.moveaxis(_pad_classes(plan, x).reshape(shape), -2, 1)
        return x.reshape(-1, *x.shape[2:])

    return jax.tree.map(cut, weights)


def _pad_classes(plan: ChunkedPlan, x: jax.Array) -> jax.Array:
    missing = plan.chunks * plan.classes - x.shape[-1]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])


def _first_channel_group(plan: ChunkedPlan, parts: _Parts, index: int) -> int:
    """Finds the first of the channel groups that the blocks of a chunk see."""
    sees_all = parts[0].shape[0] == plan.blocks
    return 0 if sees_all else index // plan.chunks * plan.blocks


def _chunk_inputs(
    plan: ChunkedPlan, parts: _Parts, seeds: Seeds | None, index: int
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Cuts out the query part and value part of a chunk, and computes its scaled mask."""
    start = _first_channel_group(plan, parts, index)
    query_part, value_part = (
        jax.lax.dynamic_slice_in_dim(part, start, plan.blocks) for part in parts
    )
    if seeds is None:
        return query_part, value_part, None
    shape = (*query_part.shape[:3], plan.classes)
    first = index // plan.chunks * plan.blocks, index % plan.chunks * plan.classes
    mask = scaled_mask(seeds, shape, first, plan.dropout, value_part.dtype)
    return query_part, value_part, mask


def _project(part: jax.Array, kernel: jax.Array) -> jax.Array:
    """Projects to wide `[blocks, batch, positions, classes]`."""
    return wide_einsum("nbld,ndk->nblk", part, kernel)


def _masked_values(
    mask: jax.Array | None, part: jax.Array, kernel: jax.Array, bias: jax.Array | None = None
) -> jax.Array:
    values = _project(part, kernel)
    if bias is not None:
        values = values + bias[:, None, None].astype(values.dtype)
    return values if mask is None else values * mask


def _add_at(total: jax.Array, gradient: jax.Array, start: int) -> jax.Array:
    """Adds the gradient of the channel groups from `start` on to `total`."""
    old = jax.lax.dynamic_slice_in_dim(total, start, gradient.shape[0])
    return jax.lax.dynamic_update_slice_in_dim(total, old + gradient, start, 0)
