"""Plans the GPU kernels: which shapes they take, and in which blocks.

Blocks are as they were measured on an H100 and, where `gpu_model.py` predicts a clear gain,
others. What `noah-jax autotune` found on this machine's own GPU comes before both.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from noah_jax import console
from noah_jax.errors import InputError
from noah_jax.heads.noah import gpu_tuned, pallas_triton
from noah_jax.heads.noah.gpu_blocks import SMALLEST_SIDE, BlockSizes, GpuPlan, padded_channels
from noah_jax.heads.noah.gpu_model import kernel_costs, milliseconds
from noah_jax.heads.noah.kernels import ceil_div, images_per_device, round_up
from noah_jax.heads.noah.operands import PocaShape

_MOST_BYTES = 1024  # of channels per position and block; more would spill registers on an H100
_MOST_IMAGES = 2**16 - 1  # programs along the last axis of a grid
_WARPS = 2048  # keep every multiprocessor busy; the gradients of the weights are split over so many
_NARROW = 128  # most channels of a block whose programs have four warps
# Bytes of weights and accumulators, 211 registers a thread: DeiT-Base's kernels need 226 with all
# else. More would spill.
_FOUR_WARPS_HOLD = 108_000
_SHARED_WEIGHTS = 8  # images of a program that keeps its weights
_MARGIN = 1.4  # how many times as fast the model must find what was never measured


def gpu_plan(shape: PocaShape, *, interpret: bool = False, **block_sizes: Any) -> GpuPlan:
    """Plans blocks with which nothing spills.

    Args:
      shape: Shape of the head.
      interpret: Whether Pallas emulates the kernels.
      **block_sizes: Fields of `BlockSizes` to set; the others are chosen.

    Raises:
      InputError: If the shape or a block size does not fit, or JAX cannot compile the kernels
        (`TritonError`).
    """
    batch = images_per_device(shape, backend="gpu", interpret=interpret)
    channels = padded_channels(shape)
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
    blocks = default_blocks(shape, batch)
    if block_sizes:
        blocks = replaced(blocks, block_sizes)
    elif not interpret:
        blocks = _tuned(blocks, shape, batch)
    return GpuPlan(blocks, shape.dropout, interpret)


def _tuned(blocks: BlockSizes, shape: PocaShape, batch: int) -> BlockSizes:
    try:
        return replaced(blocks, gpu_tuned.block_sizes(shape, batch))
    except InputError as error:
        console.warn_once(f"{gpu_tuned.path()} is ignored, remove it: {error}")
        return blocks


def default_blocks(shape: PocaShape, batch: int) -> BlockSizes:
    """Chooses blocks without looking at what was tuned.

    Args:
      shape: Shape of the head.
      batch: Images on one GPU.
    """
    measured = measured_blocks(shape, batch)
    if shape.dtype.itemsize > 2 or padded_channels(shape) <= _NARROW:
        return measured

    def predicted(blocks: BlockSizes) -> float:
        return sum(milliseconds(shape, batch, blocks))

    best = min(_alternatives(shape, batch), key=predicted)
    return best if predicted(best) * _MARGIN < predicted(measured) else measured


def measured_blocks(shape: PocaShape, batch: int, *, warps: int | None = None) -> BlockSizes:
    """Returns blocks as they were measured: an image a program, all products on the chip.

    Args:
      shape: Shape of the head.
      batch: Images on one GPU.
      warps: Warps of a program; by default those measured, 4 for narrow blocks and 8 for wide ones.
    """
    if warps is None:
        narrow = shape.dtype.itemsize == 2 and padded_channels(shape) <= _NARROW
        warps = 4 if narrow else 8
    largest = 64 if shape.dtype.itemsize == 2 else 32
    # The smaller tile is taken if it needs less padding.
    tile = min((largest, 32), key=lambda tile: round_up(shape.positions, tile))
    classes = _tile_size(shape.num_classes, largest)
    warps_per_image = ceil_div(shape.num_classes, classes) * shape.head_num * warps
    return BlockSizes(
        inner_positions=_tile_size(shape.positions, tile),
        outer_positions=_tile_size(shape.positions, largest),
        classes=classes,
        forward_images=1,
        images=ceil_div(batch, ceil_div(_WARPS, warps_per_image)),
        warps=warps,
    )


def _alternatives(shape: PocaShape, batch: int) -> Iterator[BlockSizes]:
    """Yields blocks for wide heads that compile without spills, but were never timed."""
    for warps in (8, 4):
        blocks = measured_blocks(shape, batch, warps=warps)
        # Several positions tiles are a loop of their own, inside that over the images.
        one_tile = shape.positions <= blocks.inner_positions
        for images in {1, min(batch, _SHARED_WEIGHTS) if one_tile else 1}:
            for products in (False, True):
                blocks = dataclasses.replace(blocks, forward_images=images, products=products)
                costs = kernel_costs(shape, batch, blocks).values()
                if warps == 8 or max(cost.register_bytes for cost in costs) <= _FOUR_WARPS_HOLD:
                    yield blocks


def replaced(blocks: BlockSizes, sizes: dict[str, Any]) -> BlockSizes:
    """Returns the blocks with some sizes replaced.

    Raises:
      InputError: If there is no such size, or a tile cannot have it.
    """
    fields = [field.name for field in dataclasses.fields(BlockSizes)]
    for name, size in sizes.items():
        if name not in fields:
            raise InputError(f"block sizes are {', '.join(fields)}; got {name!r}")
        if isinstance(size, bool) != (name == "products") or not isinstance(size, int):
            raise InputError(f"the block size {name} cannot be {size!r}")
        least = SMALLEST_SIDE if name in ("inner_positions", "outer_positions", "classes") else 1
        power = name not in ("forward_images", "images", "stages", "products")
        if name != "products" and (size < least or (power and size & (size - 1))):
            raise InputError(
                f"the block size {name} must be at least {least}"
                f"{' and a power of two' if power else ''}, got {size}"
            )
    return dataclasses.replace(blocks, **sizes)


def _tile_size(size: int, largest: int) -> int:
    return min(max(1 << (size - 1).bit_length(), SMALLEST_SIDE), largest)
