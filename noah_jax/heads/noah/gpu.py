"""Pallas kernels for NVIDIA GPUs, by Triton: scores and values never leave the chip.

They are flash attention with the weights of a tile of classes as queries: a program takes one
image and one block of the head and goes through the positions in tiles with an online softmax.
Forward keeps the residuals of `chunked.py` for backward, with `lse` to the base of two. Backward
computes scores and values twice, so that nothing is added atomically: one kernel gives the
gradients of the features, with the classes in its inner loop, and the other those of the weights,
with images and positions there.

What they do with one tile is in `gpu_tiles.py`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from noah_jax.errors import InputError
from noah_jax.heads.noah import pallas_triton
from noah_jax.heads.noah.chunked import Residuals, pairwise, plan_of_blocks
from noah_jax.heads.noah.gpu_tiles import (
    LOG2E,
    SMALLEST_SIDE,
    GpuPlan,
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
from noah_jax.heads.noah.kernel_or_plain import kernel_or_plain
from noah_jax.heads.noah.kernels import (
    Pair,
    Ref,
    append_bias_channel,
    cast,
    cast_like,
    differentiable,
    differentiated_once,
    images_per_device,
    round_up,
    split_over_devices,
)
from noah_jax.heads.noah.operands import (
    Operands,
    PocaInputs,
    PocaShape,
)
from noah_jax.nn.dropout import Seeds

_MOST_BYTES = 1024  # of channels per position and block; more would spill registers on an H100
_MOST_IMAGES = 2**16 - 1  # programs along the last axis of a grid


def gpu_plan(
    shape: PocaShape,
    *,
    interpret: bool = False,
    devices: int | None = None,
    warps: int = 2048,
) -> GpuPlan:
    """Plans tiles with which nothing spills.

    Args:
      shape: Shape of the head.
      interpret: Whether Pallas emulates the kernels.
      devices: Number of devices the batch is split over; by default as the mesh says.
      warps: How many warps keep every multiprocessor busy; the gradients of the weights are split
        over so many.

    Raises:
      InputError: If the shape does not fit, or JAX cannot compile the kernels (`TritonError`).
    """
    batch = images_per_device(shape, backend="gpu", interpret=interpret, devices=devices)
    query_channels, value_channels = shape.block_channels
    channels = round_up(query_channels, SMALLEST_SIDE) + round_up(
        value_channels + bool(shape.dropout), SMALLEST_SIDE
    )
    if not shape.positions or not 0 < batch <= _MOST_IMAGES:
        raise InputError(
            f"the GPU kernel takes 1 to {_MOST_IMAGES} images a device and at least one"
            f" position, got {batch} and {shape.positions}"
        )
    if channels * shape.dtype.itemsize > _MOST_BYTES:
        raise InputError(
            f"the GPU kernel takes at most {_MOST_BYTES // shape.dtype.itemsize} channels a block"
            f" in {shape.dtype}, got {channels}"
        )
    pallas_triton.check(interpret=interpret)
    narrow = shape.dtype.itemsize == 2
    largest = 64 if narrow else 32
    # The smaller tile is taken if it needs less padding.
    tile = min((largest, 32), key=lambda tile: round_up(shape.positions, tile))
    classes = _tile_size(shape.num_classes, largest)
    program_warps = 4 if narrow and channels <= 128 else 8
    warps_per_image = pl.cdiv(shape.num_classes, classes) * shape.head_num * program_warps
    return GpuPlan(
        _tile_size(shape.positions, tile),
        _tile_size(shape.positions, largest),
        classes,
        pl.cdiv(batch, pl.cdiv(warps, warps_per_image)),
        program_warps,
        shape.dropout,
        interpret,
    )


def _tile_size(size: int, largest: int) -> int:
    return min(max(pl.next_power_of_2(size), SMALLEST_SIDE), largest)


def gpu_poca(plan: GpuPlan, inputs: PocaInputs) -> jax.Array:
    """Computes the logits as `reference_poca` does, by the plan of `gpu_plan`."""
    return split_over_devices(_poca_on_device, plan, inputs.operands(), inputs.seeds)


def _poca_on_device(plan: GpuPlan, operands: Operands, seeds: Seeds | None) -> jax.Array:
    bias = operands.value_bias
    if seeds is None:
        seed_words = jnp.zeros((2,), jnp.int32)
    else:
        operands = append_bias_channel(operands)
        seed_words = jnp.concatenate([seeds.words, seeds.images])
    query_part, value_part, query_kernel, value_kernel, _ = operands
    logits = _poca(plan, Pair(query_part, value_part), Pair(query_kernel, value_kernel), seed_words)
    return logits if plan.dropout else logits + bias.sum(0)


def _forward(
    plan: GpuPlan, parts: Pair, kernels: Pair, seeds: jax.Array
) -> tuple[jax.Array, tuple]:
    """Computes `[batch, classes]` of parts `[channel groups, batch, positions, channels]`."""
    residuals = _compute(plan, _forward_by_kernel, _forward_plainly, parts, kernels, seeds)
    return residuals.out.sum(1), (parts, kernels, seeds, residuals)


def _backward(plan: GpuPlan, saved: tuple, cotangent: jax.Array) -> tuple[Pair, Pair, None]:
    d_parts = _compute(plan, _features_by_kernel, _features_plainly, saved, cotangent)
    d_kernels = _compute(plan, _weights_by_kernel, _weights_plainly, saved, cotangent)
    return d_parts, d_kernels, None


_poca = differentiable(_forward, _backward)


@functools.partial(differentiated_once, static=(0, 1, 2))
def _compute(plan: GpuPlan, by_kernel: Callable, plainly: Callable, *arguments: Any) -> Any:
    by_kernel, plainly = (functools.partial(f, plan) for f in (by_kernel, plainly))
    if plan.interpret:
        return by_kernel(*arguments)
    return kernel_or_plain(by_kernel, plainly, *arguments)


def _plain_logits(plan: GpuPlan, parts: Pair, kernels: Pair, seeds: jax.Array) -> jax.Array:
    by_chunks = plan_of_blocks(kernels.query.shape[2], plan.dropout)
    masks = Seeds(seeds[:2], seeds[2:]) if plan.dropout else None
    return pairwise(by_chunks, tuple(parts), tuple(kernels), masks)


def _forward_plainly(plan: GpuPlan, parts: Pair, kernels: Pair, seeds: jax.Array) -> Residuals:
    """Returns residuals of which only the outputs' sum over the blocks, the logits, is used."""
    logits = _plain_logits(plan, parts, kernels, seeds)
    out = jnp.zeros((logits.shape[0], kernels.query.shape[0], logits.shape[1]), logits.dtype)
    return Residuals(out, out.at[:, 0].set(logits))


def _features_plainly(plan: GpuPlan, saved: tuple, cotangent: jax.Array) -> Pair:
    parts, kernels, seeds, _ = saved
    _, pull = jax.vjp(lambda parts: _plain_logits(plan, parts, kernels, seeds), parts)
    return pull(cotangent)[0]


def _weights_plainly(plan: GpuPlan, saved: tuple, cotangent: jax.Array) -> Pair:
    parts, kernels, seeds, _ = saved
    _, pull = jax.vjp(lambda kernels: _plain_logits(plan, parts, kernels, seeds), kernels)
    return pull(cotangent)[0]


def _forward_by_kernel(plan: GpuPlan, parts: Pair, kernels: Pair, seeds: jax.Array) -> Residuals:
    """Runs the forward kernel: residuals of every block, each `[batch, head_num, classes]`."""
    batch = parts.query.shape[1]
    head_num, _, classes = kernels.query.shape
    of_block = jax.ShapeDtypeStruct((batch, head_num, classes), jnp.float32)
    return _call(
        plan,
        _forward_kernel,
        "noah_head_forward",
        (pl.cdiv(classes, plan.classes), head_num, batch),
        (seeds, parts, cast(kernels, parts.query.dtype)),
        Residuals(of_block, of_block),
    )


def _features_by_kernel(plan: GpuPlan, saved: tuple, cotangent: jax.Array) -> Pair:
    """Runs the backward kernel for the features: gradients of both parts."""
    parts, kernels, seeds, residuals = saved
    channel_groups, batch, positions, _ = parts.query.shape
    return _call(
        plan,
        _features_kernel,
        "noah_head_backward_features",
        (pl.cdiv(positions, plan.outer_positions), channel_groups, batch),
        (seeds, parts, cast(kernels, parts.query.dtype), residuals, cotangent),
        parts.map(lambda part: jax.ShapeDtypeStruct(part.shape, part.dtype)),
    )


def _weights_by_kernel(plan: GpuPlan, saved: tuple, cotangent: jax.Array) -> Pair:
    """Runs the backward kernel for the weights: gradients of both kernels."""
    parts, kernels, seeds, residuals = saved
    head_num, _, classes = kernels.query.shape
    chunks = pl.cdiv(parts.query.shape[1], plan.images)
    sums = _call(
        plan,
        _weights_kernel,
        "noah_head_backward_weights",
        (pl.cdiv(classes, plan.classes), head_num, chunks),
        (seeds, parts, cast(kernels, parts.query.dtype), residuals, cotangent),
        kernels.map(lambda kernel: jax.ShapeDtypeStruct((chunks, *kernel.shape), jnp.float32)),
    )
    return cast_like(sums.map(lambda x: x.sum(0)), kernels)


def _call(
    plan: GpuPlan, kernel: Any, name: str, grid: tuple[int, ...], inputs: tuple, out_shape: Any
) -> Any:
    """Runs a kernel on whole arrays; each program takes what its place in the grid needs."""
    return pallas_triton.call(
        functools.partial(kernel, plan),
        *inputs,
        name=name,
        grid=grid,
        out_shape=out_shape,
        warps=plan.warps,
        interpret=plan.interpret,
    )


def _forward_kernel(
    plan: GpuPlan, seeds_ref: Ref, part_ref: Pair, kernel_ref: Pair, residuals_ref: Residuals
) -> None:
    tile, block, image = (pl.program_id(axis) for axis in range(3))
    channel_group = channel_group_of(part_ref.query, kernel_ref.query, block)
    num_positions, num_classes = part_ref.query.shape[2], kernel_ref.query.shape[2]
    first_class = tile * plan.classes
    classes = first_class + jnp.arange(plan.classes)
    weights = kernel_ref.map(lambda ref: load_weights(plan, ref, block, first_class))

    def add_tile(index: jax.Array, carry: tuple) -> tuple:
        m, l_sum, out = carry
        start = index * plan.inner_positions
        positions = start + jnp.arange(plan.inner_positions)
        parts = part_ref.map(
            lambda ref: load_part(ref, channel_group, image, start, plan.inner_positions)
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

    zeros = jnp.zeros((plan.classes,), jnp.float32)
    m, l_sum, out = jax.lax.fori_loop(
        0,
        pl.cdiv(num_positions, plan.inner_positions),
        add_tile,
        (zeros - jnp.inf, zeros, zeros),
    )
    window = image, block, pl.ds(first_class, plan.classes)
    for ref, x in (residuals_ref.lse, m + jnp.log2(l_sum)), (residuals_ref.out, out / l_sum):
        pallas_triton.store(ref.at[window], x, mask=classes < num_classes)


def _features_kernel(
    plan: GpuPlan,
    seeds_ref: Ref,
    part_ref: Pair,
    kernel_ref: Pair,
    residuals_ref: Residuals,
    d_logits_ref: Ref,
    d_part_ref: Pair,
) -> None:
    tile, channel_group, image = (pl.program_id(axis) for axis in range(3))
    blocks = kernel_ref.query.shape[0] // part_ref.query.shape[0]  # that see these channels
    class_tiles = pl.cdiv(kernel_ref.query.shape[2], plan.classes)
    start = tile * plan.outer_positions
    positions = start + jnp.arange(plan.outer_positions)
    parts = part_ref.map(
        lambda ref: load_part(ref, channel_group, image, start, plan.outer_positions)
    )

    def add_tile(index: jax.Array, sums: Pair) -> Pair:
        block = channel_group * blocks + jax.lax.div(index, class_tiles)
        first_class = jax.lax.rem(index, class_tiles) * plan.classes
        classes = first_class + jnp.arange(plan.classes)
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
            rows = start, plan.outer_positions
            view, mask = matrix_window(ref, (channel_group, image), rows, columns)
            pallas_triton.store(view, total.astype(ref.dtype), mask=mask)


def _weights_kernel(
    plan: GpuPlan,
    seeds_ref: Ref,
    part_ref: Pair,
    kernel_ref: Pair,
    residuals_ref: Residuals,
    d_logits_ref: Ref,
    d_kernel_ref: Pair,
) -> None:
    tile, block, chunk = (pl.program_id(axis) for axis in range(3))
    channel_group = channel_group_of(part_ref.query, kernel_ref.query, block)
    _, batch, num_positions, _ = part_ref.query.shape
    position_tiles = pl.cdiv(num_positions, plan.inner_positions)
    first_class = tile * plan.classes
    classes = first_class + jnp.arange(plan.classes)
    weights = kernel_ref.map(lambda ref: load_weights(plan, ref, block, first_class))

    def add_tile(index: jax.Array, sums: Pair) -> Pair:
        image = chunk * plan.images + jax.lax.div(index, position_tiles)
        start = jax.lax.rem(index, position_tiles) * plan.inner_positions
        positions = start + jnp.arange(plan.inner_positions)
        parts = part_ref.map(
            lambda ref: load_part(ref, channel_group, image, start, plan.inner_positions)
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
    images = jnp.minimum(batch - chunk * plan.images, plan.images)
    sums = jax.lax.fori_loop(0, images * position_tiles, add_tile, zeros)
    for ref, totals in zip(d_kernel_ref, sums, strict=True):
        for rows, total in zip(channel_pieces(ref.shape[2]), totals, strict=True):
            columns = first_class, plan.classes
            view, mask = matrix_window(ref, (chunk, block), rows, columns)
            pallas_triton.store(view, total.T, mask=mask)
