"""POCA a chunk of classes at a time, with a backward pass of its own, for accelerators.

Scores and values are `[batch, head_num, positions, classes]`, far more numbers than anything
else near the head, and where blocks are narrow the passes over them cost more than the products
that made them. Here they exist only a chunk of classes at a time. Forward keeps, besides its
inputs, two numbers for every image, block and class: the scores' log-sum-exp and the output `o`.
With upstream gradient `g` and attention `a`, backward computes `a` and the values `v` again:

    d value = a * g
    d score = a * g * (v - o)

All of it is plain JAX, so it can be differentiated once more (in reverse mode).
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from noah_jax.nn import dropout as dropouts
from noah_jax.nn.dtypes import wide_dtype, wide_einsum

_CLASSES = 512  # of one chunk


class Weights(NamedTuple):
    """The head's, without the query's bias, which cancels.

    Attributes:
      query_kernel: `[head_num, channels, classes]`.
      value_kernel: likewise.
      value_bias: `[head_num, classes]`, or `None` for none.
    """

    query_kernel: jax.Array
    value_kernel: jax.Array
    value_bias: jax.Array | None


class Operands(NamedTuple):
    """What the head computes with: the parts of the features, and the weights.

    Attributes:
      query_part: `[groups, batch, positions, channels]`: the features the scores come from;
        `groups` is `head_num`, or 1 where every block sees all of them.
      value_part: likewise for the values.
      query_kernel: see `Weights`.
      value_kernel: likewise.
      value_bias: likewise.
    """

    query_part: jax.Array
    value_part: jax.Array
    query_kernel: jax.Array
    value_kernel: jax.Array
    value_bias: jax.Array | None


class _Plan(NamedTuple):
    """How the classes are cut into chunks.

    Attributes:
      blocks: blocks in a chunk: one or all.
      parts: chunks that make the classes of a block.
      classes: classes in a chunk; the last part is filled with zeros.
    """

    blocks: int
    parts: int
    classes: int


class Kept(NamedTuple):
    """What forward keeps of a chunk, each `[..., classes]`."""

    log_sum_exp: jax.Array
    out: jax.Array


def attend(scores: jax.Array, values: jax.Array) -> Kept:
    """Forward from `[..., positions, classes]`."""
    # Any shift cancels, so this one is not differentiated.
    largest = jax.lax.stop_gradient(scores.max(-2))
    weights = jnp.exp(scores - largest[..., None, :])
    total = weights.sum(-2)
    return Kept(largest + jnp.log(total), (weights * values).sum(-2) / total)


def differentiate(
    scores: jax.Array, values: jax.Array, kept: Kept, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gradients of scores and values.

    Args:
      scores: `[..., classes]`.
      values: likewise.
      kept: by forward, in shapes that broadcast to the scores'.
      cotangent: the logits', likewise.
    """
    to_values = jnp.exp(scores - kept.log_sum_exp) * cotangent
    return to_values * (values - kept.out), to_values


def scaled_mask(
    seeds: dropouts.Seeds,
    shape: tuple[int, int, int, int],
    first: tuple[jax.Array | int, jax.Array | int],
    rate: float,
    dtype: Any,
) -> jax.Array:
    """What dropout multiplies the values of a chunk by.

    Args:
      seeds: of the masks.
      shape: `(blocks, batch, positions, classes)` of the chunk.
      first: its first block and class.
      rate: of the dropout.
      dtype: of the features.
    """
    block, position, label = (
        jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 2, 3)
    )
    block, label = block + first[0], label + first[1]
    words, image = seeds.words, seeds.images[:, None, None]
    keep = dropouts.kept(
        dropouts.row_seed((words[0], words[1]), image, block, label), position, rate
    )
    return keep / jnp.asarray(1 - rate, wide_dtype(dtype))


def chunked_poca(
    operands: Operands,
    seeds: dropouts.Seeds | None = None,
    *,
    dropout: float = 0.0,
) -> jax.Array:
    """Wide logits, `[batch, classes]`; see `noah_jax.heads.noah.poca.poca`.

    Args:
      operands: features and weights.
      seeds: of the dropout's masks; `None` switches it off.
      dropout: rate of the dropout on the values.
    """
    plan = _plan(operands)
    if seeds is not None:
        return _pairwise(plan, dropout, operands, seeds)
    logits = _pairwise(plan, 0.0, operands._replace(value_bias=None), None)
    # The weights sum to one over the positions, so the bias passes through unchanged.
    return logits + operands.value_bias.astype(logits.dtype).sum(0)


def _plan(operands: Operands) -> _Plan:
    """Chunks of all blocks where their classes are few enough, else of one."""
    head_num, _, num_classes = operands.query_kernel.shape
    if head_num * num_classes <= _CLASSES and len(operands.query_part) == head_num:
        return _Plan(head_num, 1, num_classes)
    parts = math.ceil(num_classes / _CLASSES)
    return _Plan(1, parts, math.ceil(num_classes / parts))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _pairwise(
    plan: _Plan, rate: float, operands: Operands, seeds: dropouts.Seeds | None
) -> jax.Array:
    """Logits, `[batch, classes]`."""
    return _forward(plan, rate, operands, seeds)[0]


def _forward(plan, rate, operands, seeds):
    def step(_, index, chunk):
        query_part, value_part, keep = _inputs(plan, rate, operands, seeds, index)
        scores = _project(query_part, chunk.query_kernel)
        values = _values(keep, value_part, chunk.value_kernel, chunk.value_bias)
        return None, attend(scores, values)

    _, kept = _for_each(step, None, _chunks(plan, operands))
    batch = operands.query_part.shape[1]
    blocks = len(operands.query_kernel) // plan.blocks
    out = kept.out.reshape(blocks, plan.parts, *kept.out.shape[1:]).sum((0, 2))
    logits = out.swapaxes(0, 1).reshape(batch, plan.parts * plan.classes)
    return logits[:, : operands.query_kernel.shape[-1]], (operands, seeds, kept)


def _backward(plan, rate, residuals, cotangent):
    operands, seeds, kept = residuals
    shape = (len(cotangent), plan.parts, plan.classes)
    cotangents = _padded(plan, cotangent).reshape(shape).swapaxes(0, 1)

    def step(sums, index, chunk, kept):
        query_part, value_part, keep = _inputs(plan, rate, operands, seeds, index)
        scores, from_scores = jax.vjp(_project, query_part, chunk.query_kernel)
        values, from_values = jax.vjp(
            functools.partial(_values, keep), value_part, chunk.value_kernel, chunk.value_bias
        )
        upstream = cotangents[index % plan.parts]
        rows = jax.tree.map(lambda x: x[..., None, :], (kept, upstream))
        to_scores, to_values = differentiate(scores, values, *rows)
        to_query_part, to_query_kernel = from_scores(to_scores)
        to_value_part, to_value_kernel, to_value_bias = from_values(to_values)
        start = _first_group(plan, operands, index)
        sums = _add(sums[0], to_query_part, start), _add(sums[1], to_value_part, start)
        return sums, (to_query_kernel, to_value_kernel, to_value_bias)

    parts = operands.query_part, operands.value_part
    zeros = [jnp.zeros(part.shape, wide_dtype(part.dtype)) for part in parts]
    sums, weights = _for_each(step, tuple(zeros), _chunks(plan, operands), kept)
    # Chunks come from weights by a linear map, whose transpose puts their gradients together.
    join = jax.linear_transpose(lambda weights: _split(plan, weights), tuple(operands[2:]))
    sums = [total.astype(part.dtype) for total, part in zip(sums, parts, strict=True)]
    return Operands(*sums, *join(weights)[0]), None


_pairwise.defvjp(_forward, _backward)


def _chunks(plan: _Plan, operands: Operands) -> Weights:
    """The weights of all chunks, in front an axis that counts them."""
    return Weights(*_split(plan, tuple(operands[2:])))


def _for_each(step: Callable, carry: Any, *inputs: Any) -> tuple[Any, Any]:
    """`jax.lax.scan` of `step(carry, index, *chunk_inputs)`, written out."""
    outputs = []
    for index in range(len(inputs[0].query_kernel)):
        chunk = jax.tree.map(operator.itemgetter(index), inputs)
        # The barriers keep chunks one after another: their scores share the same memory.
        carry, chunk = jax.lax.optimization_barrier((carry, chunk))
        carry, output = jax.lax.optimization_barrier(step(carry, index, *chunk))
        outputs.append(output)
    return carry, jax.tree.map(lambda *chunks: jnp.stack(chunks), *outputs)


def _split(plan: _Plan, weights: tuple[jax.Array | None, ...]) -> tuple[jax.Array | None, ...]:
    """Every `[head_num, ..., classes]` as `[chunks, blocks, ..., classes of a chunk]`."""

    def split(x):
        shape = (len(x) // plan.blocks, plan.blocks, *x.shape[1:-1], plan.parts, plan.classes)
        x = jnp.moveaxis(_padded(plan, x).reshape(shape), -2, 1)
        return x.reshape(-1, *x.shape[2:])

    return jax.tree.map(split, weights)


def _padded(plan: _Plan, x: jax.Array) -> jax.Array:
    missing = plan.parts * plan.classes - x.shape[-1]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])


def _first_group(plan: _Plan, operands: Operands, index: int) -> int:
    """Where the groups that a chunk sees begin."""
    one_group = len(operands.query_part) == plan.blocks
    return 0 if one_group else index // plan.parts * plan.blocks


def _inputs(plan, rate, operands, seeds, index):
    """A chunk's query part, value part and scaled dropout mask."""
    start = _first_group(plan, operands, index)
    query_part, value_part = (
        jax.lax.dynamic_slice_in_dim(part, start, plan.blocks)
        for part in (operands.query_part, operands.value_part)
    )
    if seeds is None:
        return query_part, value_part, None
    shape = (*query_part.shape[:3], plan.classes)
    first = index // plan.parts * plan.blocks, index % plan.parts * plan.classes
    return query_part, value_part, scaled_mask(seeds, shape, first, rate, value_part.dtype)


def _project(part: jax.Array, kernel: jax.Array) -> jax.Array:
    """Wide `[blocks, batch, positions, classes]`."""
    return wide_einsum("nbld,ndk->nblk", part, kernel)


def _values(keep, part, kernel, bias):
    values = _project(part, kernel)
    if bias is not None:
        values = values + bias[:, None, None].astype(values.dtype)
    return values if keep is None else values * keep


def _add(total: jax.Array, gradient: jax.Array, start: int) -> jax.Array:
    """`total` with the gradient of its groups from `start` on added."""
    old = jax.lax.dynamic_slice_in_dim(total, start, len(gradient))
    return jax.lax.dynamic_update_slice_in_dim(total, old + gradient, start, 0)
