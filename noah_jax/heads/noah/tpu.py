"""Pallas kernel for TPUs: scores and values never leave on-chip memory.

Each step of the grid takes a tile of images and one block of the head, whose computation is in
`tpu_block.py`. Features come transposed, `[channels, positions * images]`, because few channels
would fill few lanes. Forward keeps the residuals of `chunked.py` for backward.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from noah_jax.heads.noah.chunked import Residuals
from noah_jax.heads.noah.kernels import (
    Pair,
    Ref,
    append_bias_channel,
    call_kernel,
    cast,
    cast_like,
    differentiable,
    differentiated_once,
    round_up,
    split_over_devices,
)
from noah_jax.heads.noah.operands import (
    Operands,
    PocaInputs,
    PocaShape,
)
from noah_jax.heads.noah.tpu_block import (
    BlockRefs,
    DropoutAt,
    GradientRefs,
    Scratch,
    attend_block,
    clear,
    differentiate_block,
    gradient_shapes,
    pad_kernel,
    scratch_shapes,
)
from noah_jax.heads.noah.tpu_tiles import (
    LANES,
    SUBLANES,
    Tile,
    TpuPlan,
    plan_tiles,
)
from noah_jax.nn.dropout import Seeds


def tpu_plan(
    shape: PocaShape,
    *,
    interpret: bool = False,
    devices: int | None = None,
    rows: int | None = None,
    vmem: int | None = None,
    cores: int | None = None,
) -> TpuPlan:
    """Plans the largest tile of images that fits into VMEM.

    Args:
      shape: Shape of the head.
      interpret: Whether Pallas emulates the kernels.
      devices: Number of devices the batch is split over; by default as the mesh says.
      rows: Most rows of scores (positions times images) in a tile, if that is not below the
        smallest tile; by default as many as fit.
      vmem: Bytes of VMEM that a kernel may take; by default by the kind of device.
      cores: Cores that share a kernel's grid; by default by the kind of device.

    Raises:
      InputError: If the shape does not tile or fit.
    """
    itemsize = shape.dtype.itemsize
    query_channels, value_channels = shape.block_channels
    widths = query_channels, value_channels + bool(shape.dropout)
    channels = sum(round_up(width, SUBLANES) for width in widths)

    def needed(tile: Tile) -> int:
        features = tile.rows * channels
        return (
            max(shape.head_num, 2) * channels * tile.classes * 4  # gradients of the weights
            + 2 * channels * tile.classes * itemsize  # the weights
            + features * itemsize * 4  # features and their gradients, two buffers of each
            + features * 4  # sums of the gradients
            + tile.rows * round_up(channels, LANES) * itemsize  # features, transposed
            + tile.scratch_bytes(itemsize)
            # logits, log-sum-exp, outputs, cotangents
            + 8 * tile.images * tile.classes * 4
        )

    return plan_tiles(
        shape,
        needed,
        interpret=interpret,
        devices=devices,
        vmem=vmem,
        cores=cores,
        rows=rows,
    )


def tpu_poca(plan: TpuPlan, inputs: PocaInputs) -> jax.Array:
    """Computes the logits as `reference_poca` does, by the plan of `tpu_plan`.

    The images of a device must have consecutive numbers in the dropout masks.
    """
    return split_over_devices(_poca_on_device, plan, inputs.operands(), inputs.seeds)


def _poca_on_device(plan: TpuPlan, operands: Operands, seeds: Seeds | None) -> jax.Array:
    bias, num_classes = operands.value_bias, operands.query_kernel.shape[-1]
    if seeds is None:
        seed_words = jnp.zeros((3,), jnp.int32)
    else:
        operands = append_bias_channel(operands)
        seed_words = jnp.append(seeds.words, seeds.images[0])
    query_part, value_part, query_kernel, value_kernel, _ = operands
    parts = Pair(query_part, value_part).map(functools.partial(_tile, plan))
    kernels = Pair(query_kernel, value_kernel).map(functools.partial(pad_kernel, plan))
    logits = _poca_of_tiles(plan, parts, kernels, seed_words)
    logits = logits.reshape(-1, logits.shape[-1])[:, :num_classes]
    return logits if plan.dropout else logits + bias.sum(0)


def _tile(plan: TpuPlan, part: jax.Array) -> jax.Array:
    """Cuts a part into padded tiles.

    `[channel groups, batch, positions, channels]` becomes
    `[tiles, channel groups, channels, padded rows]`.
    """
    channel_groups, batch, positions, channels = part.shape
    shape = (channel_groups, batch // plan.images, plan.images, positions, channels)
    part = part.reshape(shape).transpose(1, 0, 4, 3, 2)
    part = part.reshape(-1, channel_groups, channels, plan.rows)
    padding = round_up(channels, SUBLANES) - channels, plan.padded_rows - plan.rows
    return jnp.pad(part, [(0, 0), (0, 0), (0, padding[0]), (0, padding[1])])


def _forward(
    plan: TpuPlan, parts: Pair, kernels: Pair, seeds: jax.Array
) -> tuple[jax.Array, tuple]:
    """Computes `[tiles, images, classes]` of tiled parts and padded kernels."""
    residuals = _call_forward(plan, parts, kernels, seeds)
    return residuals.out.sum(1), (parts, kernels, seeds, residuals)


def _backward(plan: TpuPlan, saved: tuple, cotangent: jax.Array) -> tuple[Pair, Pair, None]:
    return *_call_backward(plan, saved, cotangent), None


_poca_of_tiles = differentiable(_forward, _backward)


@differentiated_once
def _call_forward(plan: TpuPlan, parts: Pair, kernels: Pair, seeds: jax.Array) -> Residuals:
    """Runs the forward kernel."""
    tiles = parts.query.shape[0]
    head_num, _, classes = kernels.query.shape
    dtype = parts.query.dtype
    weights = cast(kernels, dtype)
    of_block = jax.ShapeDtypeStruct((tiles, head_num, plan.images, classes), jnp.float32)
    (residuals,) = call_kernel(
        functools.partial(_forward_kernel, plan),
        (seeds, parts, weights),
        grid=(head_num, tiles),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            parts.map(lambda part: _swapped(_part_spec(part))),
            weights.map(lambda kernel: _swapped(_kernel_spec(kernel))),
        ],
        out_specs=(Residuals(*[_swapped(_block_spec(of_block))] * 2),),
        out_shape=(Residuals(of_block, of_block),),
        scratch_shapes=[_row_shapes(plan, parts), scratch_shapes(plan)],
        # Cores share the first parallel axis, so that must have several steps.
        compiler_params=plan.compiler_params(
            *(("parallel", "arbitrary") if head_num > 1 else ("arbitrary", "parallel"))
        ),
        interpret=plan.interpret,
        name="noah_head_forward",
    )
    return residuals


def _forward_kernel(
    plan: TpuPlan,
    seeds_ref: Ref,
    part_ref: Pair,
    kernel_ref: Pair,
    residuals_ref: Residuals,
    rows_ref: Pair,
    scratch_ref: Scratch,
) -> None:
    rows_ref.query[...] = part_ref.query[0, 0].T
    rows_ref.value[...] = part_ref.value[0, 0].T
    block, tile = pl.program_id(0), pl.program_id(1)
    dropout_at = DropoutAt(seeds_ref, tile, block) if plan.dropout else None
    refs = BlockRefs(rows_ref, kernel_ref, scratch_ref, residuals_ref)
    attend_block(plan, 0, refs, dropout_at)


class _BackwardScratch(NamedTuple):
    """Buffers of the backward kernel.

    Attributes:
      rows: Features of a tile, `[padded rows, channels]`.
      d_columns: Sums of the gradients of the transposed features.
      chunk: Scores and values of a chunk of classes.
      d_chunk: Their gradients, in the dtype of the features.
    """

    rows: Pair
    d_columns: Pair
    chunk: Scratch
    d_chunk: tuple[Pair, Pair]


@differentiated_once
def _call_backward(plan: TpuPlan, saved: tuple, cotangent: jax.Array) -> tuple[Pair, Pair]:
    """Runs the backward kernel: gradients of both parts and both kernels."""
    parts, kernels, seeds, residuals = saved
    tiles, head_num = parts.query.shape[0], kernels.query.shape[0]
    dtype = parts.query.dtype
    weights = cast(kernels, dtype)
    follow = _tiles_follow(plan)

    def ordered(spec: pl.BlockSpec) -> pl.BlockSpec:
        return _swapped(spec) if follow else spec

    def d_kernel_spec(kernel: jax.Array) -> pl.BlockSpec:
        whole = pl.BlockSpec(kernel.shape, lambda *_: (0, 0, 0))
        return ordered(_kernel_spec(kernel)) if follow else whole

    d_parts, d_kernels = call_kernel(
        functools.partial(_backward_kernel, plan),
        (seeds, parts, weights, residuals, cotangent),
        grid=(head_num, tiles) if follow else (tiles, head_num),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            parts.map(lambda part: ordered(_part_spec(part))),
            weights.map(lambda kernel: ordered(_kernel_spec(kernel))),
            Residuals(*[ordered(_block_spec(x)) for x in residuals]),
            ordered(_logits_spec(cotangent)),
        ],
        out_specs=(
            parts.map(lambda part: ordered(_part_spec(part))),
            kernels.map(d_kernel_spec),
        ),
        out_shape=(
            parts.map(lambda part: jax.ShapeDtypeStruct(part.shape, dtype)),
            kernels.map(lambda kernel: jax.ShapeDtypeStruct(kernel.shape, jnp.float32)),
        ),
        scratch_shapes=[
            _BackwardScratch(
                _row_shapes(plan, parts),
                parts.map(lambda part: pltpu.VMEM(part.shape[2:], jnp.float32)),
                scratch_shapes(plan),
                gradient_shapes(plan, dtype),
            )
        ],
        compiler_params=plan.compiler_params("parallel" if follow else "arbitrary", "arbitrary"),
        interpret=plan.interpret,
        name="noah_head_backward",
    )
    return d_parts, cast_like(d_kernels, kernels)


def _backward_kernel(
    plan: TpuPlan,
    seeds_ref: Ref,
    part_ref: Pair,
    kernel_ref: Pair,
    residuals_ref: Residuals,
    d_logits_ref: Ref,
    d_part_ref: Pair,
    d_kernel_ref: Pair,
    scratch_ref: _BackwardScratch,
) -> None:
    rows_ref, d_columns_ref = scratch_ref.rows, scratch_ref.d_columns
    rows_ref.query[...] = part_ref.query[0, 0].T
    rows_ref.value[...] = part_ref.value[0, 0].T
    tile, block = pl.program_id(0), pl.program_id(1)
    at: Any = block
    first = (tile == 0) & (block == 0)
    if _tiles_follow(plan):
        tile, block = block, tile
        first, at = tile == 0, 0

    @pl.when(first)
    def _() -> None:
        clear(*d_kernel_ref)

    # One channel group collects the gradients of all blocks.
    @pl.when((block == 0) | (plan.channel_groups > 1))
    def _() -> None:
        clear(*d_columns_ref)

    dropout_at = DropoutAt(seeds_ref, tile, block) if plan.dropout else None
    refs = BlockRefs(rows_ref, kernel_ref, scratch_ref.chunk, residuals_ref)
    gradient_refs = GradientRefs(
        columns=part_ref.map(lambda ref: ref.at[0, 0]),
        d_scratch=scratch_ref.d_chunk,
        d_logits=d_logits_ref,
        d_columns=d_columns_ref,
        d_kernel=d_kernel_ref.map(lambda ref: ref.at[at]),
    )
    differentiate_block(plan, 0, refs, gradient_refs, dropout_at)
    d_part_ref.query[0, 0] = d_columns_ref.query[...].astype(d_part_ref.query.dtype)
    d_part_ref.value[0, 0] = d_columns_ref.value[...].astype(d_part_ref.value.dtype)


def _tiles_follow(plan: TpuPlan) -> bool:
    """Whether backward takes all tiles of a block after each other.

    Then cores can share the blocks, and the gradients of one block's weights stay in VMEM. Where
    all blocks have the same channels, their gradients are summed a tile at a time.
    """
    return plan.channel_groups > 1


def _swapped(spec: pl.BlockSpec) -> pl.BlockSpec:
    """Gives the spec for a grid whose first axis are the blocks."""
    index_map: Any = spec.index_map
    return pl.BlockSpec(spec.block_shape, lambda block, tile: index_map(tile, block))


def _part_spec(part: jax.Array) -> pl.BlockSpec:
    """Takes a tile and a channel group; one group serves all blocks."""
    _, channel_groups, channels, rows = part.shape
    return pl.BlockSpec(
        (1, 1, channels, rows),
        lambda tile, block: (tile, block if channel_groups > 1 else 0, 0, 0),
    )


def _kernel_spec(kernel: jax.Array) -> pl.BlockSpec:
    """Takes the weights of a block."""
    return pl.BlockSpec((1, *kernel.shape[1:]), lambda _, block: (block, 0, 0))


def _block_spec(x: jax.Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
    """Takes what belongs to a tile and a block."""
    return pl.BlockSpec((1, 1, *x.shape[2:]), lambda tile, block: (tile, block, 0, 0))


def _logits_spec(x: jax.Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
    """Takes what belongs to a tile."""
    return pl.BlockSpec((1, *x.shape[1:]), lambda tile, _: (tile, 0, 0))


def _row_shapes(plan: TpuPlan, parts: Pair) -> Pair:
    """Gives the buffers for the features of a tile, `[padded rows, channels]`."""
    return parts.map(lambda part: pltpu.VMEM((plan.padded_rows, part.shape[2]), part.dtype))
