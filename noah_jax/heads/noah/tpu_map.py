"""Pallas kernel for TPUs on the feature maps of convolutional networks.

XLA lays such a map out as `[*spatial, batch, channels]`. Kernels that read the whole map in that
layout, and write its whole gradient, avoid the slices, transpositions and joins around the kernel
of `tpu.py`, which for ResNet-50 cost almost as much as the kernels. Each step of the grid takes a
tile of images and all blocks; the computation of a block is in `tpu_block.py`.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from noah_jax.errors import InputError
from noah_jax.heads.noah.chunked import Residuals
from noah_jax.heads.noah.kernels import (
    Pair,
    Ref,
    batch_specs,
    call_kernel,
    differentiable,
    differentiated_once,
    round_up,
)
from noah_jax.heads.noah.operands import PocaInputs, PocaShape
from noah_jax.heads.noah.tpu_block import (
    BlockRefs,
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
from noah_jax.heads.noah.tpu_tiles import (
    LANES,
    SUBLANES,
    Tile,
    TpuPlan,
    plan_tiles,
)
from noah_jax.nn.per_device import on_each_device


def tpu_map_plan(
    shape: PocaShape,
    *,
    interpret: bool = False,
    devices: int | None = None,
    vmem: int | None = None,
    cores: int | None = None,
) -> TpuPlan:
    """Plans the largest tile of images that fits into VMEM.

    Args:
      shape: Shape of the head.
      interpret: Whether Pallas emulates the kernels.
      devices: Number of devices the batch is split over; by default as the mesh says.
      vmem: Bytes of VMEM that a kernel may take; by default by the kind of device.
      cores: Cores that share a kernel's grid; by default by the kind of device.

    Raises:
      InputError: If there is no such kernel for the shape, or it does not tile or fit.
    """
    if not shape.spatial_major or len(shape.spatial) != 2:
        raise InputError(
            "the TPU kernel for maps takes [batch, rows, columns, channels] with"
            f" spatial_major=True, got {len(shape.spatial)} spatial dimensions with"
            f" spatial_major={shape.spatial_major}"
        )
    if shape.dropout:
        raise InputError("the TPU kernel for maps has no dropout")
    if shape.channel_groups != shape.head_num or not shape.split.kv_split:
        raise InputError("the TPU kernel for maps needs head_split and kv_split")
    itemsize = shape.dtype.itemsize
    channels = sum(round_up(width, SUBLANES) for width in shape.block_channels)
    lanes = sum(round_up(width, LANES) for width in shape.block_channels)

    def needed(tile: Tile) -> int:
        return (
            # the map and its gradient, two buffers of each
            4 * tile.rows * shape.channels * itemsize
            # float32 weights and their gradients; the weights in the features' dtype
            + shape.head_num * channels * tile.classes * (4 + 4 + itemsize)
            + tile.rows * (lanes + channels) * itemsize  # channels of a block, and transposed
            + tile.rows * channels * 4  # sums of their gradients
            + tile.scratch_bytes(itemsize)
            # log-sum-exp, outputs, cotangents
            + 4 * (1 + shape.head_num) * tile.images * tile.classes * 4
        )

    return plan_tiles(
        shape,
        needed,
        interpret=interpret,
        devices=devices,
        vmem=vmem,
        cores=cores,
        blocks=shape.head_num,
    )


def tpu_map_poca(plan: TpuPlan, inputs: PocaInputs) -> jax.Array:
    """Computes the logits as `reference_poca` does, by the plan of `tpu_map_plan`."""
    compute = functools.partial(_poca_on_device, plan)
    return on_each_device(compute, batch_specs, inputs.features, *inputs.weights)


class _Widths(NamedTuple):
    """Channels of one block: of its query and of its value."""

    query: int
    value: int

    def channels(self, head_num: int) -> Iterator[Pair]:
        """Gives the slices of the map with the query and value channels of each block."""
        for block in range(head_num):
            start = head_num * self.query + block * self.value
            yield Pair(
                slice(block * self.query, (block + 1) * self.query),
                slice(start, start + self.value),
            )


def _poca_on_device(
    plan: TpuPlan,
    features: jax.Array,
    query_kernel: jax.Array,
    value_kernel: jax.Array,
    bias: jax.Array,
) -> jax.Array:
    batch, *_, channels = features.shape
    features = features.transpose(1, 2, 0, 3).reshape(plan.positions, batch, channels)
    widths = _Widths(query_kernel.shape[1], value_kernel.shape[1])
    logits = _poca_of_map(plan, widths, features, Pair(query_kernel, value_kernel))
    logits = logits.reshape(batch, -1)[:, : query_kernel.shape[-1]]
    return logits + bias.sum(0)


def _forward(
    plan: TpuPlan, widths: _Widths, features: jax.Array, kernels: Pair
) -> tuple[jax.Array, tuple]:
    """Computes `[tiles, images, padded classes]` of `[positions, batch, channels]`."""
    residuals = _call_forward(plan, widths, features, kernels)
    return residuals.out.sum(1), (features, kernels, residuals)


class _Grid(NamedTuple):
    """Tiles of images, shared out among cores.

    Attributes:
      cores: Cores that share the tiles evenly; each has its own first step.
      steps: Tiles of each core.
    """

    cores: int
    steps: int

    @classmethod
    def of_tiles(cls, plan: TpuPlan, tiles: int) -> Self:
        """Shares out so many tiles."""
        cores = plan.cores if tiles % plan.cores == 0 else 1
        return cls(cores, tiles // cores)

    def spec(self, block: tuple[int, ...], axis: int) -> pl.BlockSpec:
        """Takes a block of an array for each tile, along one of its axes."""

        def index_map(core: Any, step: Any) -> tuple:
            index: list[Any] = [0] * len(block)
            index[axis] = core * self.steps + step
            return tuple(index)

        return pl.BlockSpec(block, index_map)

    def map_spec(self, plan: TpuPlan, features: jax.Array) -> pl.BlockSpec:
        """Takes the map of a tile of images."""
        positions, _, channels = features.shape
        return self.spec((positions, plan.images, channels), 1)

    def tile_spec(self, x: jax.Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
        """Takes what belongs to a tile."""
        return self.spec((1, *x.shape[1:]), 0)


class _OperandRefs(NamedTuple):
    """Buffers for what the blocks are computed from.

    Attributes:
      rows: Channels of a block, `[padded rows, padded channels]`.
      weights: Weights of all blocks; see `load_weights`.
    """

    rows: Pair
    weights: Pair

    def prepare(self, kernel_ref: Pair) -> None:
        """Fills what is the same for all tiles: the weights, and zeros where no features go."""
        load_weights(kernel_ref, self.weights)
        clear(*self.rows)


def _operand_shapes(plan: TpuPlan, kernels: Pair, dtype: Any) -> _OperandRefs:
    shapes = kernels.map(functools.partial(padded_weights, plan))
    return _OperandRefs(
        shapes.map(lambda shape: pltpu.VMEM((plan.padded_rows, shape[1]), dtype)),
        shapes.map(lambda shape: pltpu.VMEM(shape, dtype)),
    )


@functools.partial(differentiated_once, static=(0, 1))
def _call_forward(plan: TpuPlan, widths: _Widths, features: jax.Array, kernels: Pair) -> Residuals:
    """Runs the forward kernel."""
    tiles = features.shape[1] // plan.images
    grid = _Grid.of_tiles(plan, tiles)
    head_num, _, classes = padded_weights(plan, kernels.query)
    of_block = jax.ShapeDtypeStruct((tiles, head_num, plan.images, classes), jnp.float32)
    (residuals,) = call_kernel(
        functools.partial(_forward_kernel, plan, widths),
        (features, kernels),
        grid=grid,
        in_specs=[grid.map_spec(plan, features), kernels.map(_weights_spec)],
        out_specs=(Residuals(*[grid.tile_spec(of_block)] * 2),),
        out_shape=(Residuals(of_block, of_block),),
        scratch_shapes=[_operand_shapes(plan, kernels, features.dtype), scratch_shapes(plan)],
        compiler_params=plan.compiler_params("parallel", "arbitrary"),
        interpret=plan.interpret,
        name="noah_head_forward",
    )
    return residuals


def _forward_kernel(
    plan: TpuPlan,
    widths: _Widths,
    map_ref: Ref,
    kernel_ref: Pair,
    residuals_ref: Residuals,
    operands_ref: _OperandRefs,
    scratch_ref: Scratch,
) -> None:
    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        operands_ref.prepare(kernel_ref)

    refs = BlockRefs(*operands_ref, scratch_ref, residuals_ref)
    for block, channels in enumerate(widths.channels(kernel_ref.query.shape[0])):
        _load_channels(plan, map_ref, channels, operands_ref.rows)
        attend_block(plan, block, refs, None)


class _BackwardScratch(NamedTuple):
    """Buffers of the backward kernel.

    Attributes:
      operands: What the blocks are computed from.
      columns: Channels of a block, `[padded channels, padded rows]`.
      d_columns: Sums of the gradients of `columns`.
      chunk: Scores and values of a chunk of classes.
      d_chunk: Their gradients, in the dtype of the features.
    """

    operands: _OperandRefs
    columns: Pair
    d_columns: Pair
    chunk: Scratch
    d_chunk: tuple[Pair, Pair]


@functools.partial(differentiated_once, static=(0, 1))
def _call_backward(
    plan: TpuPlan, widths: _Widths, saved: tuple, cotangent: jax.Array
) -> tuple[jax.Array, Pair]:
    """Runs the backward kernel: gradients of the map and both kernels."""
    features, kernels, residuals = saved
    dtype = features.dtype
    grid = _Grid.of_tiles(plan, features.shape[1] // plan.images)
    # Each core sums over its own tiles.
    d_kernel_shapes = kernels.map(
        lambda kernel: jax.ShapeDtypeStruct(
            (grid.cores, *padded_weights(plan, kernel)), jnp.float32
        )
    )

    def column_shapes(dtype: Any) -> Pair:
        return d_kernel_shapes.map(lambda x: pltpu.VMEM((x.shape[2], plan.padded_rows), dtype))

    d_features, d_kernels = call_kernel(
        functools.partial(_backward_kernel, plan, widths),
        (features, kernels, residuals, cotangent),
        grid=grid,
        in_specs=[
            grid.map_spec(plan, features),
            kernels.map(_weights_spec),
            Residuals(*map(grid.tile_spec, residuals)),
            grid.tile_spec(cotangent),
        ],
        out_specs=(grid.map_spec(plan, features), d_kernel_shapes.map(_core_spec)),
        out_shape=(jax.ShapeDtypeStruct(features.shape, dtype), d_kernel_shapes),
        scratch_shapes=[
            _BackwardScratch(
                _operand_shapes(plan, kernels, dtype),
                column_shapes(dtype),
                column_shapes(jnp.float32),
                scratch_shapes(plan),
                gradient_shapes(plan, dtype),
            )
        ],
        compiler_params=plan.compiler_params("parallel", "arbitrary"),
        interpret=plan.interpret,
        name="noah_head_backward",
    )
    return d_features, cut_like(d_kernels.map(lambda x: x.sum(0)), kernels)


_poca_of_map = differentiable(_forward, _call_backward, static=(0, 1))


def _backward_kernel(
    plan: TpuPlan,
    widths: _Widths,
    map_ref: Ref,
    kernel_ref: Pair,
    residuals_ref: Residuals,
    d_logits_ref: Ref,
    d_map_ref: Ref,
    d_kernel_ref: Pair,
    scratch_ref: _BackwardScratch,
) -> None:
    operands_ref, columns_ref = scratch_ref.operands, scratch_ref.columns
    rows_ref, weights_ref = operands_ref
    d_columns_ref = scratch_ref.d_columns

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        operands_ref.prepare(kernel_ref)
        clear(*d_kernel_ref)

    refs = BlockRefs(rows_ref, weights_ref, scratch_ref.chunk, residuals_ref)
    for block, channels in enumerate(widths.channels(kernel_ref.query.shape[0])):
        _load_channels(plan, map_ref, channels, rows_ref)
        columns_ref.query[...] = rows_ref.query[...].T
        columns_ref.value[...] = rows_ref.value[...].T
        clear(*d_columns_ref)
        gradient_refs = GradientRefs(
            kernel=weights_ref,
            columns=columns_ref,
            d_scratch=scratch_ref.d_chunk,
            d_logits=d_logits_ref,
            d_columns=d_columns_ref,
            d_kernel=Pair(d_kernel_ref.query.at[0, block], d_kernel_ref.value.at[0, block]),
        )
        differentiate_block(plan, block, refs, gradient_refs, None)
        for part, part_ref in zip(channels, d_columns_ref, strict=True):
            gradient = part_ref[...].astype(d_map_ref.dtype).T
            width = part.stop - part.start
            shape = plan.positions, plan.images, width
            d_map_ref[:, :, part] = gradient[: plan.rows, :width].reshape(shape)


def _load_channels(plan: TpuPlan, map_ref: Ref, channels: Pair, rows_ref: Pair) -> None:
    """Copies the channels of a block out of the map."""
    for part, part_ref in zip(channels, rows_ref, strict=True):
        width = part.stop - part.start
        part_ref[: plan.rows, :width] = map_ref[:, :, part].reshape(plan.rows, width)


def _weights_spec(x: jax.Array) -> pl.BlockSpec:
    """Takes the whole array in one buffer, because it is the same for all tiles."""
    return pl.BlockSpec(x.shape, lambda *_: (0,) * x.ndim, pipeline_mode=pl.Buffered(1))


def _core_spec(x: jax.Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
    """Takes what a core sums over its tiles."""
    return pl.BlockSpec(
        (1, *x.shape[1:]),
        lambda core, _: (core, *(0,) * (len(x.shape) - 1)),
        pipeline_mode=pl.Buffered(1),
    )
