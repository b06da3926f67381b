"""Pallas kernels of the head for NVIDIA GPUs, by Triton: scores and values never leave the chip.

They are flash attention with the weights of a tile of classes as queries: a program takes one
block of the head and goes through the positions of an image, or of several, in tiles with an online
softmax. Forward keeps the residuals of `chunked.py` for backward, with `lse` to the base of two.
Backward computes scores and values twice, so that nothing is added atomically: one kernel gives
the gradients of the features, with the classes in its inner loop, and the other those of the
weights, with images and positions there. Where blocks are so wide that the products cost more than
writing their factors, a single kernel writes the gradients of scores and values instead.

What they do with one tile is in `gpu_tiles.py`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from noah_jax.heads.noah import pallas_triton
from noah_jax.heads.noah.chunked import Residuals
from noah_jax.heads.noah.gpu_blocks import GpuPlan
from noah_jax.heads.noah.gpu_tiles import (
    LOG2E,
    Where,
    add_products,
    channel_group_of,
    channel_pieces,
    differentiate_tile,
    drop_at,
    load_of_block,
    load_part,
    load_weights,
    matrix_window,
    product,
)
from noah_jax.heads.noah.kernels import Pair, Ref, ceil_div


def forward_kernel(
    plan: GpuPlan, seeds_ref: Ref, part_ref: Pair, kernel_ref: Pair, residuals_ref: Residuals
) -> None:
    """Computes the residuals of a tile of classes of a block, for a group of images."""
    tile, block, group = (pl.program_id(axis) for axis in range(3))
    channel_group = channel_group_of(part_ref.query, kernel_ref.query, block)
    _, batch, num_positions, _ = part_ref.query.shape
    num_classes = kernel_ref.query.shape[2]
    first_class = tile * plan.blocks.classes
    classes = first_class + jnp.arange(plan.blocks.classes)
    weights = kernel_ref.map(lambda ref: load_weights(plan, ref, block, first_class))

    def compute(image: jax.Array) -> None:
        def add_tile(index: Any, carry: tuple) -> tuple:
            m, l_sum, out = carry
            start = index * plan.blocks.inner_positions
            positions = start + jnp.arange(plan.blocks.inner_positions)
            parts = part_ref.map(
                lambda ref: load_part(ref, channel_group, image, start, len(positions))
            )
            scores, values = weights.map(lambda a, b: product(plan, a, b, (0, 1)), parts)
            scores = jnp.where((positions < num_positions)[None], scores * LOG2E, -jnp.inf)
            where = Where(image, block, classes[:, None], positions[None])
            values = drop_at(plan, seeds_ref, where, values)
            # The online softmax: sums so far are corrected by the new maximum.
            m_next = jnp.maximum(m, scores.max(1))
            p = jnp.exp2(scores - m_next[:, None])
            correction = jnp.exp2(m - m_next)
            l_sum = l_sum * correction + p.sum(1)
            return m_next, l_sum, out * correction + (p * values).sum(1)

        zeros = jnp.zeros((plan.blocks.classes,), jnp.float32)
        start = zeros - jnp.inf, zeros, zeros
        tiles = ceil_div(num_positions, plan.blocks.inner_positions)
        m, l_sum, out = _loop(tiles, add_tile, start)
        window = image, block, pl.ds(first_class, plan.blocks.classes)
        for ref, x in (residuals_ref.lse, m + jnp.log2(l_sum)), (residuals_ref.out, out / l_sum):
            pallas_triton.store(ref.at[window], x, mask=classes < num_classes)

    _for_each_image(plan, group, batch, compute)


def _loop(tiles: int, add_tile: Callable, start: Any) -> Any:
    """Goes through the tiles; a single one needs no loop, so that an outer one is pipelined."""
    return add_tile(0, start) if tiles == 1 else jax.lax.fori_loop(0, tiles, add_tile, start)


def _for_each_image(
    plan: GpuPlan, group: jax.Array, batch: int, compute: Callable[[jax.Array], None]
) -> None:
    """Goes through a group of images, with the same weights."""
    images = plan.blocks.forward_images
    if images == 1:
        compute(group)
        return

    def step(index: jax.Array, carry: tuple) -> tuple:
        compute(group * images + index)
        return carry

    jax.lax.fori_loop(0, jnp.minimum(batch - group * images, images), step, ())


def features_kernel(
    plan: GpuPlan,
    seeds_ref: Ref,
    part_ref: Pair,
    kernel_ref: Pair,
    residuals_ref: Residuals,
    d_logits_ref: Ref,
    d_part_ref: Pair,
) -> None:
    """Computes the gradients of a tile of features, of all blocks that see them."""
    tile, channel_group, image = (pl.program_id(axis) for axis in range(3))
    blocks = kernel_ref.query.shape[0] // part_ref.query.shape[0]  # that see these channels
    class_tiles = ceil_div(kernel_ref.query.shape[2], plan.blocks.classes)
    start = tile * plan.blocks.outer_positions
    positions = start + jnp.arange(plan.blocks.outer_positions)
    parts = part_ref.map(
        lambda ref: load_part(ref, channel_group, image, start, plan.blocks.outer_positions)
    )

    def add_tile(index: jax.Array, sums: Pair) -> Pair:
        block = channel_group * blocks + jax.lax.div(index, class_tiles)
        first_class = jax.lax.rem(index, class_tiles) * plan.blocks.classes
        classes = first_class + jnp.arange(plan.blocks.classes)
        weights = kernel_ref.map(lambda ref: load_weights(plan, ref, block, first_class))
        scores_and_values = parts.map(lambda a, b: product(plan, a, b, (1, 0)), weights)
        of_block = load_of_block(plan, residuals_ref, d_logits_ref, image, block, first_class)
        where = Where(image, block, classes[None], positions[:, None])
        gradients = differentiate_tile(
            plan, seeds_ref, where, scores_and_values, [x[None] for x in of_block]
        )
        return sums.map(functools.partial(add_products, plan, (1, 1)), gradients, weights)

    zeros = parts.map(lambda pieces: [jnp.zeros(piece.shape, jnp.float32) for piece in pieces])
    sums = jax.lax.fori_loop(0, blocks * class_tiles, add_tile, zeros)
    for ref, totals in zip(d_part_ref, sums, strict=True):
        for columns, total in zip(channel_pieces(ref.shape[-1]), totals, strict=True):
            rows = start, plan.blocks.outer_positions
            view, mask = matrix_window(ref, (channel_group, image), rows, columns)
            pallas_triton.store(view, total.astype(ref.dtype), mask=mask)


def gradients_kernel(
    plan: GpuPlan,
    first_block: int,
    seeds_ref: Ref,
    part_ref: Pair,
    kernel_ref: Pair,
    residuals_ref: Residuals,
    d_logits_ref: Ref,
    gradients_ref: Pair,
) -> None:
    """Writes the gradients of a block's scores and values, `[batch, positions, classes]`."""
    tile, group, other_block = (pl.program_id(axis) for axis in range(3))
    block = first_block + other_block  # Pallas takes no constant for an index
    channel_group = channel_group_of(part_ref.query, kernel_ref.query, block)
    _, batch, num_positions, _ = part_ref.query.shape
    first_class = tile * plan.blocks.classes
    classes = first_class + jnp.arange(plan.blocks.classes)
    weights = kernel_ref.map(lambda ref: load_weights(plan, ref, block, first_class))

    def compute(image: jax.Array) -> None:
        of_block = load_of_block(plan, residuals_ref, d_logits_ref, image, block, first_class)

        def write_tile(index: Any, carry: tuple) -> tuple:
            start = index * plan.blocks.outer_positions
            positions = start + jnp.arange(plan.blocks.outer_positions)
            parts = part_ref.map(
                lambda ref: load_part(ref, channel_group, image, start, len(positions))
            )
            scores_and_values = parts.map(lambda a, b: product(plan, a, b, (1, 0)), weights)
            where = Where(image, block, classes[None], positions[:, None])
            gradients = differentiate_tile(
                plan, seeds_ref, where, scores_and_values, [x[None] for x in of_block]
            )
            rows, columns = (start, len(positions)), (first_class, plan.blocks.classes)
            for ref, gradient in zip(gradients_ref, gradients, strict=True):
                view, mask = matrix_window(ref, (image,), rows, columns)
                pallas_triton.store(view, gradient.astype(ref.dtype), mask=mask)
            return carry

        _loop(ceil_div(num_positions, plan.blocks.outer_positions), write_tile, ())

    _for_each_image(plan, group, batch, compute)


def weights_kernel(
    plan: GpuPlan,
    seeds_ref: Ref,
    part_ref: Pair,
    kernel_ref: Pair,
    residuals_ref: Residuals,
    d_logits_ref: Ref,
    d_kernel_ref: Pair,
) -> None:
    """Computes the gradients of a tile of weights, summed over a chunk of images."""
    tile, block, chunk = (pl.program_id(axis) for axis in range(3))
    channel_group = channel_group_of(part_ref.query, kernel_ref.query, block)
    _, batch, num_positions, _ = part_ref.query.shape
    position_tiles = ceil_div(num_positions, plan.blocks.inner_positions)
    first_class = tile * plan.blocks.classes
    classes = first_class + jnp.arange(plan.blocks.classes)
    weights = kernel_ref.map(lambda ref: load_weights(plan, ref, block, first_class))

    def add_tile(index: jax.Array, sums: Pair) -> Pair:
        image = chunk * plan.blocks.images + jax.lax.div(index, position_tiles)
        start = jax.lax.rem(index, position_tiles) * plan.blocks.inner_positions
        positions = start + jnp.arange(plan.blocks.inner_positions)
        parts = part_ref.map(
            lambda ref: load_part(ref, channel_group, image, start, plan.blocks.inner_positions)
        )
        scores, values = weights.map(lambda a, b: product(plan, a, b, (0, 1)), parts)
        # Beyond the last position features, and so scores, are zero, which is too large for
        # `exp2` if the other scores are far below.
        scores = jnp.where((positions < num_positions)[None], scores, -jnp.inf)
        of_block = load_of_block(plan, residuals_ref, d_logits_ref, image, block, first_class)
        where = Where(image, block, classes[:, None], positions[None])
        gradients = differentiate_tile(
            plan, seeds_ref, where, Pair(scores, values), [x[:, None] for x in of_block]
        )
        return sums.map(functools.partial(add_products, plan, (1, 0)), gradients, parts)

    zeros = weights.map(
        lambda pieces: [jnp.zeros(piece.shape[::-1], jnp.float32) for piece in pieces]
    )
    images = jnp.minimum(batch - chunk * plan.blocks.images, plan.blocks.images)
    sums = jax.lax.fori_loop(0, images * position_tiles, add_tile, zeros)
    for ref, totals in zip(d_kernel_ref, sums, strict=True):
        for rows, total in zip(channel_pieces(ref.shape[2]), totals, strict=True):
            columns = first_class, plan.blocks.classes
            view, mask = matrix_window(ref, (chunk, block), rows, columns)
            pallas_triton.store(view, total.T, mask=mask)
