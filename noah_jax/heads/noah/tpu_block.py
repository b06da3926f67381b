"""Computes one block of the head on one tile of images, inside a TPU kernel.

Scores and values, `[positions * images, classes]`, are computed in VMEM for a chunk of classes and
a part of the positions at a time. While the vector units work on one part, the matrix units compute
the next one's scores and values and, in backward, the products of the last one's gradients; so the
code of all parts stands in one loop body, without branches. The images of a position are
neighbours, so the sums over positions are plain additions of registers. `tpu.py` and `tpu_map.py`
differ in how features get here and gradients leave; the formulas are those of `chunked.py`. As the
parts come one after another, forward keeps the softmax's sums relative to the largest score so far
(arXiv:1805.02867).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from noah_jax.heads.noah.chunked import Residuals
from noah_jax.heads.noah.kernels import Pair, Ref, drop, round_up, wide_dot
from noah_jax.heads.noah.tpu_tiles import LANES, SUBLANES, TpuPlan
from noah_jax.nn.dropout import row_seed


class Scratch(NamedTuple):
    """Buffers for the scores and values of parts of the positions, `[rows, class_chunk]`.

    While a part is worked on, the next one's are computed.

    Attributes:
      buffers: A pair for each part that is in work at the same time.
      m: Largest score, `[images, class_chunk]`.
      l_sum: Sum of the softmax's numerators, likewise.
      out: Sum of the weighed values, likewise.
    """

    buffers: tuple[Pair, ...]
    m: Ref
    l_sum: Ref
    out: Ref

    def at(self, number: int) -> Pair:
        """Returns the buffers of a part. The first follows the last, whatever their number."""
        return self.buffers[number % 2 if number else 2]


class BlockRefs(NamedTuple):
    """What a block is computed from, and what it leaves for backward.

    Attributes:
      rows: Query and value channels of the block, `[padded rows, channels]`.
      kernel: Weights, `[blocks, channels of rows, classes]`.
      scratch: Buffers for scores and values.
      residuals: lse and output of the blocks, `[1, blocks, images, classes]`.
    """

    rows: Pair
    kernel: Pair
    scratch: Scratch
    residuals: Residuals


class GradientRefs(NamedTuple):
    """What the gradients of a block are computed from besides `BlockRefs`, and their sums.

    Attributes:
      kernel: Weights, `[blocks, channels of columns, classes]`.
      columns: Query and value channels of the block, `[channels, padded rows]`.
      d_scratch: Buffers for the gradients of the scores and values of parts, two pairs.
      d_logits: Cotangent of the logits, `[1, images, classes]`.
      d_columns: Gradients of `columns`, which are added to.
      d_kernel: Gradients of the block's weights, `[channels, classes]`, which are added to.
    """

    kernel: Pair
    columns: Pair
    d_scratch: tuple[Pair, Pair]
    d_logits: Ref
    d_columns: Pair
    d_kernel: Pair


class DropoutAt(NamedTuple):
    """Where a block and a tile lie in the dropout masks.

    Attributes:
      seeds_ref: int32 `[3]`: two words of the key and the number of the device's first image.
      tile: Index of the tile.
      block: Index of the block.
    """

    seeds_ref: Ref
    tile: Any
    block: Any


def padded_weights(plan: TpuPlan, kernel: Any) -> tuple[int, int, int]:
    """Pads the shape `[head_num, channels, classes]` to whole registers and chunks of classes."""
    head_num, channels, classes = kernel.shape
    return head_num, round_up(channels, SUBLANES), round_up(classes, plan.class_chunk)


def load_weights(kernel_ref: Pair, weights_ref: Pair, *, side_by_side: bool = False) -> None:
    """Copies weights `[blocks, channels, classes]` to padded buffers of the features' dtype.

    Args:
      kernel_ref: The weights.
      weights_ref: Buffers.
      side_by_side: Whether the query's channels come first in both buffers, and then the value's.
    """
    clear(*weights_ref)
    start = 0
    for from_ref, to_ref in zip(kernel_ref, weights_ref, strict=True):
        _, channels, classes = from_ref.shape
        to_ref[:, start : start + channels, :classes] = from_ref[...].astype(to_ref.dtype)
        if side_by_side:
            start += round_up(channels, SUBLANES)


def cut_like(padded: Pair, pair: Pair) -> Pair:
    """Cuts padded arrays `[head_num, channels, classes]` and casts them to the others' dtypes."""

    def cut(x: jax.Array, like: jax.Array) -> jax.Array:
        _, channels, classes = like.shape
        return x[:, :channels, :classes].astype(like.dtype)

    return padded.map(cut, pair)


def scratch_shapes(plan: TpuPlan) -> Scratch:
    """Gives the buffers of `Scratch`."""
    sums = [pltpu.VMEM((plan.images, plan.class_chunk), jnp.float32)] * 3
    return Scratch((_pair_shapes(plan, jnp.float32),) * 3, *sums)


def gradient_shapes(plan: TpuPlan, dtype: Any) -> tuple[Pair, Pair]:
    """Gives the buffers for the gradients of the scores and values of two parts."""
    return (_pair_shapes(plan, dtype),) * 2


def _pair_shapes(plan: TpuPlan, dtype: Any) -> Pair:
    rows = max(part.padded_rows(plan) for part in plan.parts)
    return Pair(*[pltpu.VMEM((rows, plan.class_chunk), dtype)] * 2)


def clear(*refs: Ref) -> None:
    """Fills the references with zeros."""
    for ref in refs:
        ref[...] = jnp.zeros(ref.shape, ref.dtype)


def attend_block(plan: TpuPlan, block: int, refs: BlockRefs, dropout_at: DropoutAt | None) -> None:
    """Writes the residuals of a block; the logits are the sum of the blocks' outputs.

    Args:
      plan: Plan of the kernel.
      block: Which block of the weights and residuals.
      refs: Channels, weights, buffers and residuals.
      dropout_at: Where the block lies in the dropout masks; `None` if dropout is off.
    """
    scratch_ref, residuals_ref = refs.scratch, refs.residuals
    sums = scratch_ref.m, scratch_ref.l_sum, scratch_ref.out

    def begin(_: Any) -> None:
        scratch_ref.m[...] = jnp.full(scratch_ref.m.shape, -jnp.inf, jnp.float32)
        clear(scratch_ref.l_sum, scratch_ref.out)

    def one_part(number: int, at: _At) -> None:
        part = plan.parts[number]
        scores_ref, values_ref = scratch_ref.at(number)
        for images in plan.image_windows:
            drop_at = _dropout(plan, dropout_at, images, at.classes)
            rows = [_score_rows(plan, position, images) for position in range(part.positions)]
            # m: the largest score of each image and class so far; l: the sum of the softmax's
            # numerators; out: the sum of the weighed values.
            old, l_sum, out = (ref[images] for ref in sums)
            m = functools.reduce(jnp.maximum, [scores_ref[row] for row in rows], old)
            shrink = jnp.exp(old - m)
            l_sum, out = l_sum * shrink, out * shrink
            for position, row in enumerate(rows):
                p = jnp.exp(scores_ref[row] - m)
                l_sum += p
                out += p * drop_at(at.first + part.start + position, values_ref[row])
            for ref, x in zip(sums, (m, l_sum, out), strict=True):
                ref[images] = x

    def end(classes: Any) -> None:
        for images in plan.image_windows:
            m, l_sum, out = (ref[images] for ref in sums)
            out = out / l_sum
            residuals_ref.lse[0, block, images, classes] = m + jnp.log(l_sum)
            residuals_ref.out[0, block, images, classes] = out

    _over_chunks(plan, block, refs, begin, one_part, end)


def differentiate_block(
    plan: TpuPlan,
    block: int,
    refs: BlockRefs,
    gradient_refs: GradientRefs,
    dropout_at: DropoutAt | None,
) -> None:
    """Adds the gradients of a block's features and weights.

    Args:
      plan: Plan of the kernel.
      block: Which block of the weights and residuals.
      refs: Channels, weights, buffers and residuals.
      gradient_refs: The cotangent, more buffers, and the sums of the gradients.
      dropout_at: See `attend_block`.
    """
    scratch_ref, residuals_ref = refs.scratch, refs.residuals
    kernel_ref, columns_ref, d_scratch_ref, d_logits_ref, d_columns_ref, d_kernel_ref = (
        gradient_refs
    )

    def one_part(number: int, at: _At) -> None:
        part, classes = plan.parts[number], at.classes
        scores_ref, values_ref = scratch_ref.at(number)
        d_scores_ref, d_values_ref = d_scratch_ref[number % 2]
        for images in plan.image_windows:
            drop_at = _dropout(plan, dropout_at, images, classes)
            lse = residuals_ref.lse[0, block, images, classes]
            out = residuals_ref.out[0, block, images, classes]
            d_logits = d_logits_ref[0, images, classes]
            for inner in range(part.positions):
                row = _score_rows(plan, inner, images)
                position = at.first + part.start + inner
                d_values = jnp.exp(scores_ref[row] - lse) * d_logits
                d_scores = d_values * (drop_at(position, values_ref[row]) - out)
                d_scores_ref[row] = d_scores.astype(d_scores_ref.dtype)
                d_values_ref[row] = drop_at(position, d_values).astype(d_values_ref.dtype)
        rows, padded = part.positions * plan.images, part.padded_rows(plan)
        if rows < padded:
            shape = padded - rows, plan.class_chunk
            d_scores_ref[rows:padded] = jnp.zeros(shape, d_scores_ref.dtype)
            d_values_ref[rows:padded] = jnp.zeros(shape, d_values_ref.dtype)
        # Gradients of weights and features.
        lanes = _part_rows(plan, number, at.first, padded)
        d_scores, d_values = d_scores_ref[:padded], d_values_ref[:padded]
        query_weights = kernel_ref.query[block, :, classes]
        value_weights = kernel_ref.value[block, :, classes]
        d_kernel_ref.query[:, classes] += _dot(plan, columns_ref.query[:, lanes], d_scores)
        d_kernel_ref.value[:, classes] += _dot(plan, columns_ref.value[:, lanes], d_values)
        d_columns_ref.query[:, lanes] += _dot(plan, query_weights, d_scores, transposed=True)
        d_columns_ref.value[:, lanes] += _dot(plan, value_weights, d_values, transposed=True)

    _over_chunks(plan, block, refs, lambda _: None, one_part, lambda _: None)


class _At(NamedTuple):
    """Where a loop body is.

    Attributes:
      classes: The window of its chunk of classes.
      first: Its first position.
    """

    classes: Any
    first: Any


def _over_chunks(
    plan: TpuPlan,
    block: int,
    refs: BlockRefs,
    begin: Callable[[Any], None],
    one_part: Callable[[int, _At], None],
    end: Callable[[Any], None],
) -> None:
    """Loops over chunks of classes and parts of the positions.

    Before each part, the scores and values of the next one are computed into other buffers, so that
    the matrix units and the vector units have work at the same time.

    Args:
      plan: Plan of the kernel.
      block: Which block of the weights.
      refs: Channels, weights and buffers.
      begin: Called with the window of a chunk of classes before its parts.
      one_part: Called with the number of each part in its body and where that is.
      end: Called with the window of a chunk of classes after its parts.
    """
    chunks = refs.kernel.query.shape[2] // plan.class_chunk
    size = plan.positions // plan.bodies  # positions of a body, if there are several
    alone = len(plan.parts) == 1 and plan.bodies == 1

    def one_class_chunk(index: jax.Array, _: Any) -> int:
        classes = _window(index, plan.class_chunk)

        def one_body(body: Any, _: Any) -> int:
            first = body * size
            for number in range(len(plan.parts)):
                following = number + 1
                if alone:
                    _multiply(plan, block, refs, classes, 0, 0)
                elif following < len(plan.parts):
                    _multiply(plan, block, refs, classes, first, following)
                else:
                    # The last chunk is computed once more; a branch would hold up the units.
                    last = body + 1 == plan.bodies
                    chunk = jnp.where(last, jnp.minimum(index + 1, chunks - 1), index)
                    start = jnp.where(last, 0, first + size)
                    _multiply(plan, block, refs, _window(chunk, plan.class_chunk), start, 0)
                one_part(number, _At(classes, first))
            return 0

        begin(classes)
        if plan.bodies == 1:
            one_body(0, 0)
        else:
            jax.lax.fori_loop(0, plan.bodies, one_body, 0)
        end(classes)
        return 0

    if not alone:
        _multiply(plan, block, refs, _window(0, plan.class_chunk), 0, 0)
    jax.lax.fori_loop(0, chunks, one_class_chunk, 0)


def _multiply(
    plan: TpuPlan, block: int, refs: BlockRefs, classes: Any, first: Any, number: int
) -> None:
    """Computes the scores and values of a part of a body, for a chunk of classes."""
    size = plan.parts[number].positions * plan.images
    rows = _part_rows(plan, number, first, size)
    pairs = zip(refs.scratch.at(number), refs.rows, refs.kernel, strict=True)
    for buffer_ref, rows_ref, kernel_ref in pairs:
        buffer_ref[:size] = _dot(plan, rows_ref[rows], kernel_ref[block, :, classes])


def _part_rows(plan: TpuPlan, number: int, first: Any, size: int) -> Any:
    """Finds the rows of a part of a body that begins at the position `first`."""
    if plan.bodies == 1:
        start = plan.parts[number].start * plan.images
        return slice(start, start + size)
    start = (first + plan.parts[number].start) * plan.images
    return pl.ds(pl.multiple_of(start, LANES), size)


def _window(index: Any, size: int) -> Any:
    """Gives the window number `index` of so many elements."""
    return pl.ds(pl.multiple_of(index * size, size), size)


def _score_rows(plan: TpuPlan, position: int, images: slice) -> slice:
    """Finds where the scores of one position of a part and a chunk of images lie."""
    start = position * plan.images + images.start
    return slice(start, start + plan.group)


def _dot(
    plan: TpuPlan, left: jax.Array, right: jax.Array, *, transposed: bool = False
) -> jax.Array:
    """Multiplies `left` by `right`, or by its transpose."""
    contracting = (1, 1 if transposed else 0)
    return wide_dot(left, right, contracting, interpret=plan.interpret, exact=plan.exact)


def _dropout(
    plan: TpuPlan, at: DropoutAt | None, images: Any, classes: Any
) -> Callable[[Any, jax.Array], jax.Array]:
    """Gives `(position, x) -> x` with dropout, for `x` of a chunk of images and classes."""
    if at is None:
        return lambda position, x: x
    shape = (plan.group, plan.class_chunk)
    image = at.seeds_ref[2] + at.tile * plan.images + images.start
    rows = row_seed(
        (at.seeds_ref[0], at.seeds_ref[1]),
        image + jax.lax.broadcasted_iota(jnp.int32, shape, 0),
        at.block,
        classes.start + jax.lax.broadcasted_iota(jnp.int32, shape, 1),
    )
    return lambda position, x: drop(x, rows, jnp.asarray(position, jnp.int32), plan.dropout)
