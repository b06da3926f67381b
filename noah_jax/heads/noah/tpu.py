"""Pallas kernel for TPUs: scores and values never leave on-chip memory.

Each step of the grid takes a tile of images and one block of the head, whose computation is in
`tpu_block.py`. Features come with the images last, as `tpu_features.py` says, because few channels
would fill few lanes. Forward keeps the residuals of `chunked.py` for backward.
"""

import functools
from collections.abc import Sequence
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
    batch_specs,
    call_kernel,
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
    cut_like,
    differentiate_block,
    gradient_shapes,
    load_weights,
    padded_weights,
    scratch_shapes,
)
from noah_jax.heads.noah.tpu_features import Features, Halves, Tiles, row_shapes
from noah_jax.heads.noah.tpu_tiles import (
    LANES,
    SUBLANES,
    Tile,
    TpuPlan,
    plan_tiles,
)
from noah_jax.nn.dropout import Seeds
from noah_jax.nn.per_device import on_each_device


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
    joined = channels <= LANES
    lanes = LANES if joined else sum(round_up(width, LANES) for width in widths)

    def needed(tile: Tile) -> int:
        features = tile.rows * channels
        return (
            max(shape.head_num, 2) * channels * tile.classes * 4  # gradients of the weights
            # float32 weights, two buffers; the weights in the features' dtype
            + channels * tile.classes * (2 * 4 + (1 + 2 * joined) * itemsize)
            + features * itemsize * 5  # features and their gradients, two buffers; `columns`
            + features * 4  # sums of the gradients
            + tile.rows * lanes * itemsize  # features, transposed
            + tile.scratch_bytes(itemsize)
            # log-sum-exp, outputs, cotangents, two buffers
            + 6 * tile.images * tile.classes * 4
        )

    plan = plan_tiles(
        shape,
        needed,
        interpret=interpret,
        devices=devices,
        vmem=vmem,
        cores=cores,
        rows=rows,
        # DeiT-Tiny's step took 2 % less memory so; with the kernel for maps, ResNet-50's took
        # longer.
        thrifty=True,
    )
    return plan._replace(halves=_takes_halves(shape, plan), joined=joined)


def _takes_halves(shape: PocaShape, plan: TpuPlan) -> bool:
    """Whether the kernel can take the map as it is; see `Halves`."""
    query_channels, value_channels = shape.block_channels
    return (
        shape.split.kv_split
        and shape.split.head_split
        and not shape.dropout
        and query_channels == value_channels
        and query_channels % SUBLANES == 0
        and plan.images % LANES == 0
        # XLA lays out maps whose channels fill whole registers with the channels last.
        and shape.channels % LANES != 0
    )


def tpu_poca(plan: TpuPlan, inputs: PocaInputs) -> jax.Array:
    """Computes the logits as `reference_poca` does, by the plan of `tpu_plan`.

    The images of a device must have consecutive numbers in the dropout masks.
    """
    if plan.halves:
        compute = functools.partial(_poca_of_halves, plan)
        return on_each_device(compute, batch_specs, inputs.features, *inputs.weights)
    return split_over_devices(_poca_of_parts, plan, inputs.operands(), inputs.seeds)


def _poca_of_parts(plan: TpuPlan, operands: Operands, seeds: Seeds | None) -> jax.Array:
    bias = operands.value_bias
    if seeds is None:
        seed_words = _no_seeds()
    else:
        operands = append_bias_channel(operands)
        seed_words = jnp.append(seeds.words, seeds.images[0])
    query_part, value_part, *kernels, _ = operands
    tiles = Tiles.of_parts(plan, Pair(query_part, value_part))
    logits = _poca_on_device(plan, tiles, Pair(*kernels), seed_words)
    return logits if plan.dropout else logits + bias.sum(0)


def _poca_of_halves(
    plan: TpuPlan, features: jax.Array, query: jax.Array, value: jax.Array, bias: jax.Array
) -> jax.Array:
    halves = Halves.of_features(plan, features)
    return _poca_on_device(plan, halves, Pair(query, value), _no_seeds()) + bias.sum(0)


def _no_seeds() -> jax.Array:
    return jnp.zeros((3,), jnp.int32)


def _poca_on_device(
    plan: TpuPlan, features: Features, kernels: Pair, seeds: jax.Array
) -> jax.Array:
    logits = _poca(plan, features, kernels, seeds)
    return logits.reshape(-1, logits.shape[-1])[:, : kernels.query.shape[-1]]


def _forward(
    plan: TpuPlan, features: Features, kernels: Pair, seeds: jax.Array
) -> tuple[jax.Array, tuple]:
    """Computes `[tiles, images, padded classes]`."""
    residuals = _call_forward(plan, features, kernels, seeds)
    return residuals.out.sum(1), (features, kernels, seeds, residuals)


def _backward(plan: TpuPlan, saved: tuple, cotangent: jax.Array) -> tuple[Features, Pair, None]:
    return *_call_backward(plan, saved, cotangent), None


_poca = differentiable(_forward, _backward)


@differentiated_once
def _call_forward(plan: TpuPlan, features: Features, kernels: Pair, seeds: jax.Array) -> Residuals:
    """Runs the forward kernel."""
    tiles = features.num_tiles(plan)
    head_num, _, classes = padded_weights(plan, kernels.query)
    of_block = jax.ShapeDtypeStruct((tiles, head_num, plan.images, classes), jnp.float32)
    (residuals,) = call_kernel(
        functools.partial(_forward_kernel, plan),
        (seeds, features, kernels),
        grid=(head_num, tiles),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            features.specs(plan),
            kernels.map(_kernel_spec),
        ],
        out_specs=(Residuals(*[_block_spec(of_block)] * 2),),
        out_shape=(Residuals(of_block, of_block),),
        scratch_shapes=[_operand_shapes(plan, kernels, features.dtype), scratch_shapes(plan)],
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
    features_ref: Features,
    kernel_ref: Pair,
    residuals_ref: Residuals,
    operands_ref: "_OperandRefs",
    scratch_ref: Scratch,
) -> None:
    rows_ref, weights_ref = _load(plan, features_ref, kernel_ref, operands_ref)
    block, tile = pl.program_id(0), pl.program_id(1)
    dropout_at = DropoutAt(seeds_ref, tile, block) if plan.dropout else None
    refs = BlockRefs(rows_ref, weights_ref, scratch_ref, residuals_ref)
    attend_block(plan, 0, refs, dropout_at)


class _OperandRefs(NamedTuple):
    """Buffers for what a block is computed from.

    Attributes:
      rows: Features of a tile; see `tpu_features.row_shapes`.
      weights: Weights of the block, `[1, channels of rows, padded classes]`; see `load_weights`.
    """

    rows: tuple[Ref, ...]
    weights: Pair


def _operand_shapes(plan: TpuPlan, kernels: Pair, dtype: Any) -> _OperandRefs:
    widths = [padded_weights(plan, kernel)[1] for kernel in kernels]
    weights = [sum(widths)] * 2 if plan.joined else widths
    return _OperandRefs(
        row_shapes(plan, widths, dtype), _weight_shapes(plan, kernels, weights, dtype)
    )


def _weight_shapes(plan: TpuPlan, kernels: Pair, widths: Sequence[int], dtype: Any) -> Pair:
    """Gives the buffers for the weights of a block with so many channels."""
    *_, classes = padded_weights(plan, kernels.query)
    return Pair(*(pltpu.VMEM((1, width, classes), dtype) for width in widths))


def _load(
    plan: TpuPlan, features_ref: Features, kernel_ref: Pair, operands_ref: _OperandRefs
) -> tuple[Pair, Pair]:
    """Fills the buffers; returns the rows and the weights for them."""
    rows_ref, weights_ref = operands_ref
    features_ref.load_rows(plan, rows_ref)
    load_weights(kernel_ref, weights_ref, side_by_side=plan.joined)
    return Pair(rows_ref[0], rows_ref[-1]), weights_ref


class _BackwardScratch(NamedTuple):
    """Buffers of the backward kernel.

    Attributes:
      operands: What a block is computed from.
      weights: Its weights for `columns`, where they are not those of `operands`.
      columns: Features of a tile, `[channels, padded rows]`, where they do not come so.
      d_columns: Sums of their gradients.
      chunk: Scores and values of a chunk of classes.
      d_chunk: Their gradients, in the dtype of the features.
    """

    operands: _OperandRefs
    weights: Pair | None
    columns: Pair | None
    d_columns: Pair
    chunk: Scratch
    d_chunk: tuple[Pair, Pair]


@differentiated_once
def _call_backward(plan: TpuPlan, saved: tuple, cotangent: jax.Array) -> tuple[Features, Pair]:
    """Runs the backward kernel: gradients of the features and both kernels."""
    features, kernels, seeds, residuals = saved
    tiles, head_num = features.num_tiles(plan), kernels.query.shape[0]
    follow = _tiles_follow(plan)
    d_kernel_shapes = kernels.map(
        lambda kernel: jax.ShapeDtypeStruct(padded_weights(plan, kernel), jnp.float32)
    )

    widths = [d_kernel.shape[1] for d_kernel in d_kernel_shapes]

    def ordered(spec: pl.BlockSpec) -> pl.BlockSpec:
        return spec if follow else _swapped(spec)

    def d_kernel_spec(d_kernel: jax.ShapeDtypeStruct) -> pl.BlockSpec:
        whole = pl.BlockSpec(d_kernel.shape, lambda *_: (0, 0, 0))
        return _kernel_spec(d_kernel) if follow else whole

    def d_columns_shape(d_kernel: jax.ShapeDtypeStruct) -> Any:
        return pltpu.VMEM((d_kernel.shape[1], plan.padded_rows), jnp.float32)

    features_spec = jax.tree.map(ordered, features.specs(plan))
    d_features, d_kernels = call_kernel(
        functools.partial(_backward_kernel, plan),
        (seeds, features, kernels, residuals, cotangent),
        grid=(head_num, tiles) if follow else (tiles, head_num),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            features_spec,
            kernels.map(lambda kernel: ordered(_kernel_spec(kernel))),
            Residuals(*[ordered(_block_spec(x)) for x in residuals]),
            ordered(_logits_spec(cotangent)),
        ],
        out_specs=(features_spec, d_kernel_shapes.map(d_kernel_spec)),
        out_shape=(
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), features),
            d_kernel_shapes,
        ),
        scratch_shapes=[
            _BackwardScratch(
                _operand_shapes(plan, kernels, features.dtype),
                _weight_shapes(plan, kernels, widths, features.dtype) if plan.joined else None,
                features.column_shapes(plan),
                d_kernel_shapes.map(d_columns_shape),
                scratch_shapes(plan),
                gradient_shapes(plan, features.dtype),
            )
        ],
        compiler_params=plan.compiler_params("parallel" if follow else "arbitrary", "arbitrary"),
        interpret=plan.interpret,
        name="noah_head_backward",
    )
    return d_features, cut_like(d_kernels, kernels)


def _backward_kernel(
    plan: TpuPlan,
    seeds_ref: Ref,
    features_ref: Features,
    kernel_ref: Pair,
    residuals_ref: Residuals,
    d_logits_ref: Ref,
    d_features_ref: Features,
    d_kernel_ref: Pair,
    scratch_ref: _BackwardScratch,
) -> None:
    d_columns_ref = scratch_ref.d_columns
    rows_ref, weights_ref = _load(plan, features_ref, kernel_ref, scratch_ref.operands)
    column_weights_ref = weights_ref
    if scratch_ref.weights is not None:
        column_weights_ref = scratch_ref.weights
        load_weights(kernel_ref, column_weights_ref)
    columns_ref = features_ref.load_columns(plan, scratch_ref.columns)
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
    refs = BlockRefs(rows_ref, weights_ref, scratch_ref.chunk, residuals_ref)
    gradient_refs = GradientRefs(
        kernel=column_weights_ref,
        columns=columns_ref,
        d_scratch=scratch_ref.d_chunk,
        d_logits=d_logits_ref,
        d_columns=d_columns_ref,
        d_kernel=d_kernel_ref.map(lambda ref: ref.at[at]),
    )
    differentiate_block(plan, 0, refs, gradient_refs, dropout_at)
    d_features_ref.store_gradients(plan, d_columns_ref)


def _tiles_follow(plan: TpuPlan) -> bool:
    """Whether backward takes all tiles of a block after each other.

    Then cores can share the blocks, and the gradients of one block's weights stay in VMEM. Where
    all blocks have the same channels, their gradients are summed a tile at a time.
    """
    return plan.channel_groups > 1


def _swapped(spec: pl.BlockSpec) -> pl.BlockSpec:
    """Gives the spec for a grid whose first axis are the tiles."""
    index_map: Any = spec.index_map
    return pl.BlockSpec(spec.block_shape, lambda tile, block: index_map(block, tile))


def _kernel_spec(kernel: jax.Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
    """Takes the weights of a block."""
    return pl.BlockSpec((1, *kernel.shape[1:]), lambda block, _: (block, 0, 0))


def _block_spec(x: jax.Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
    """Takes what belongs to a tile and a block."""
    return pl.BlockSpec((1, 1, *x.shape[2:]), lambda block, tile: (tile, block, 0, 0))


def _logits_spec(x: jax.Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
    """Takes what belongs to a tile."""
    return pl.BlockSpec((1, *x.shape[1:]), lambda _, tile: (tile, 0, 0))
