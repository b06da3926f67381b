"""What the GPU kernels do with one tile: load it, multiply, apply dropout, differentiate.

Triton knows only powers of two. Tiles of positions and classes are padded to a power of two and
masked. Channels are split into power-of-two pieces (96 = 64 + 32) instead of padded to 128.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from noah_jax.heads.noah import pallas_triton
from noah_jax.heads.noah.chunked import Residuals
from noah_jax.heads.noah.gpu_blocks import SMALLEST_SIDE, GpuPlan
from noah_jax.heads.noah.kernels import Pair, Ref, drop, round_up, wide_dot
from noah_jax.nn.dropout import row_seed

LOG2E = math.log2(math.e)


def channel_pieces(channels: int) -> list[tuple[int, int]]:
    """Splits channels into power-of-two pieces; the last may reach beyond the channels.

    Returns:
      `(start, size)` of each piece.
    """
    pieces, start = [], 0
    while start < channels:
        rest = round_up(channels - start, SMALLEST_SIDE)
        size = 2 ** (rest.bit_length() - 1)
        pieces.append((start, size))
        start += size
    return pieces


def channel_group_of(part_ref: Ref, kernel_ref: Ref, block: Any) -> jax.Array:
    """Finds the channel group that a block sees."""
    return jax.lax.div(block, kernel_ref.shape[0] // part_ref.shape[0])


class Where(NamedTuple):
    """Where a tile of values lies in the dropout masks; the fields broadcast to the tile."""

    image: Any
    block: Any
    classes: Any
    positions: Any


def differentiate_tile(
    plan: GpuPlan, seeds_ref: Ref, where: Where, scores_and_values: Pair, of_block: list
) -> Pair:
    """Computes the gradients of scores and values; `of_block` is from `_load_of_block`."""
    scores, values = scores_and_values
    lse, out, d_logits = of_block
    d_values = jnp.exp2(scores * LOG2E - lse) * d_logits
    d_scores = d_values * (drop_at(plan, seeds_ref, where, values) - out)
    return Pair(d_scores, drop_at(plan, seeds_ref, where, d_values))


def matrix_window(
    ref: Ref, index: tuple, rows: tuple[Any, int], columns: tuple[Any, int]
) -> tuple[Ref, jax.Array]:
    """Gives a window of a matrix, and the mask of what of it exists.

    Args:
      ref: An array of matrices.
      index: Which of its matrices.
      rows: First row and number of rows; the window may reach beyond the end.
      columns: First column and number of columns, likewise.
    """
    # They are indices, because a slice may not reach beyond the end.
    row_indices, column_indices = (start + jnp.arange(size) for start, size in (rows, columns))
    row_indices, column_indices = row_indices[:, None], column_indices[None]
    view = ref.at[(*index, row_indices, column_indices)]
    return view, (row_indices < ref.shape[-2]) & (column_indices < ref.shape[-1])


def _load(ref: Ref, index: tuple, rows: tuple, columns: tuple) -> jax.Array:
    """Loads a window of a matrix, with zeros beyond its end."""
    view, mask = matrix_window(ref, index, rows, columns)
    return pallas_triton.load(view, mask=mask, other=0.0)


def load_part(
    part_ref: Ref, channel_group: Any, image: Any, start: Any, positions: int
) -> list[jax.Array]:
    """Loads the features of an image, in pieces `[positions, channels]`."""
    return [
        _load(part_ref, (channel_group, image), (start, positions), piece)
        for piece in channel_pieces(part_ref.shape[3])
    ]


def load_weights(plan: GpuPlan, kernel_ref: Ref, block: Any, start: Any) -> list[jax.Array]:
    """Loads the weights of a block, in pieces `[channels, classes]`."""
    columns = start, plan.blocks.classes
    return [
        _load(kernel_ref, (block,), piece, columns) for piece in channel_pieces(kernel_ref.shape[1])
    ]


def load_of_block(
    plan: GpuPlan, residuals_ref: Residuals, d_logits_ref: Ref, image: Any, block: Any, start: Any
) -> list[jax.Array]:
    """Loads lse, outputs and cotangents of a tile of classes, with zeros beyond the last."""
    classes = pl.ds(start, plan.blocks.classes)
    mask = start + jnp.arange(plan.blocks.classes) < d_logits_ref.shape[1]
    views = (
        residuals_ref.lse.at[image, block, classes],
        residuals_ref.out.at[image, block, classes],
        d_logits_ref.at[image, classes],
    )
    return [pallas_triton.load(view, mask=mask, other=0.0) for view in views]


def product(
    plan: GpuPlan, left: list[jax.Array], right: list[jax.Array], contracting: tuple[int, int]
) -> jax.Array:
    """Multiplies matrices in pieces, over the axis that is cut."""
    products = [_dot(plan, a, b, contracting) for a, b in zip(left, right, strict=True)]
    return functools.reduce(jnp.add, products)


def add_products(
    plan: GpuPlan,
    contracting: tuple[int, int],
    totals: list[jax.Array],
    gradient: jax.Array,
    pieces: list[jax.Array],
) -> list[jax.Array]:
    """Adds the products of a gradient with a matrix in pieces to the sums for each piece."""
    return [
        total + _dot(plan, gradient.astype(piece.dtype), piece, contracting)
        for total, piece in zip(totals, pieces, strict=True)
    ]


def _dot(
    plan: GpuPlan, left: jax.Array, right: jax.Array, contracting: tuple[int, int]
) -> jax.Array:
    return wide_dot(left, right, contracting, interpret=plan.interpret)


def drop_at(plan: GpuPlan, seeds_ref: Ref, where: Where, x: jax.Array) -> jax.Array:
    """Applies dropout to a tile.

    Args:
      plan: Plan of the kernel.
      seeds_ref: int32 `[2 + batch]`: two words of the key, then the numbers of the images.
      where: Where the tile lies.
      x: Values of the tile, or their gradients.
    """
    if not plan.dropout:
        return x
    words = seeds_ref[0], seeds_ref[1]
    rows = row_seed(words, seeds_ref[2 + where.image], where.block, where.classes)
    return drop(x, rows, where.positions, plan.dropout)
