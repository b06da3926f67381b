"""Computes one block of the head on one tile of images, inside a TPU kernel.

Scores and values, `[positions * images, classes]`, are computed a chunk of classes at a time in
VMEM. The images of a position are neighbours, so the sums over positions are plain additions of
registers. `tpu.py` and `tpu_map.py` differ in how features get here and gradients leave; the
formulas are those of `chunked.py`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from noah_jax.errors import InputError
from noah_jax.heads.noah.chunked import Residuals
from noah_jax.heads.noah.kernels import (
    Pair,
    Ref,
    drop,
    images_per_device,
    round_up,
    wide_dot,
)
from noah_jax.heads.noah.operands import PocaShape
from noah_jax.nn.dropout import row_seed

LANES = 128
REGISTER_IMAGES = 16  # a register of bfloat16 has so many rows, one for each image
_MOST_UNROLLED = 14  # positions of one iteration of the innermost loops, at most
_MIB = 2**20
# VMEM of a core in MiB, by device kind. Kernels may use at most `_VMEM_FRACTION` of it.
_VMEM = {"v4": 16, "v5p": 64, "v5": 64, "v5e": 128, "v5 lite": 128, "v6e": 128, "v6 lite": 128}
_VMEM_FRACTION = 0.78


class TpuPlan(NamedTuple):
    """What the kernels are specialised to.

    Attributes:
      images: Images of a tile.
      positions: Positions of an image.
      channel_groups: One, or one for each block.
      class_chunk: Classes that are worked on at a time.
      dropout: Dropout rate on the values; 0 if it is off.
      interpret: Whether Pallas emulates the kernels.
      vmem: Bytes of VMEM that a kernel may take.
    """

    images: int
    positions: int
    channel_groups: int
    class_chunk: int
    dropout: float
    interpret: bool
    vmem: int

    @property
    def rows(self) -> int:
        """Rows of a tile's scores."""
        return self.positions * self.images

    @property
    def padded_rows(self) -> int:
        """`rows`, padded to whole registers."""
        return round_up(self.rows, LANES)

    @property
    def image_chunks(self) -> int:
        """Chunks of `REGISTER_IMAGES` images in a tile; the inner loops work on one of them."""
        return self.images // REGISTER_IMAGES

    @property
    def unroll(self) -> int:
        """Positions of one iteration of the innermost loops."""
        return max(n for n in range(1, _MOST_UNROLLED + 1) if self.positions % n == 0)

    @property
    def compiler_params(self) -> pltpu.CompilerParams:
        """Options for the compiler."""
        return pltpu.CompilerParams(vmem_limit_bytes=self.vmem)


class Scratch(NamedTuple):
    """Buffers for a chunk of classes, `[padded rows, class_chunk]`.

    Attributes:
      scores: float32 scores.
      values: float32 values.
    """

    scores: Ref
    values: Ref


class BlockRefs(NamedTuple):
    """What a block is computed from, and what it leaves for backward.

    Attributes:
      rows: Query and value channels of the block, `[padded rows, channels]`.
      kernel: Weights, `[blocks, channels, classes]`.
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
      columns: Query and value channels of the block, `[channels, padded rows]`.
      d_scratch: Buffers for the gradients of scores and values.
      d_logits: Cotangent of the logits, `[1, images, classes]`.
      d_columns: Gradients of `columns`, which are added to.
      d_kernel: Gradients of the block's weights, `[channels, classes]`, which are added to.
    """

    columns: Pair
    d_scratch: Scratch
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


def vmem_limit() -> int:
    """Finds how many bytes of VMEM a kernel may take on the devices of the mesh.

    Without a mesh, the devices are those of this process. Falls back to the smallest known VMEM
    for unknown TPUs, and to v5e's if there is no TPU (interpret mode).
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None and jax.default_backend() == "tpu":
        device = jax.devices()[0]
    kind = getattr(device, "device_kind", "")
    size = min(_VMEM.values()) if kind.startswith("TPU") else _VMEM["v5e"]
    return int(_VMEM_FRACTION * _MIB * _VMEM.get(kind.removeprefix("TPU "), size))


class Tile(NamedTuple):
    """Sizes of what a kernel works on at a time.

    Attributes:
      images: Images of the tile.
      rows: Padded rows of its scores.
      class_chunk: Classes that are worked on at a time.
      classes: All classes, padded to whole chunks.
    """

    images: int
    rows: int
    class_chunk: int
    classes: int


def plan_tiles(
    shape: PocaShape,
    needed: Callable[[Tile], int],
    *,
    interpret: bool,
    devices: int | None,
    vmem: int | None,
    rows: int | None = None,
) -> TpuPlan:
    """Plans the largest tile of images that divides the batch and fits into VMEM.

    Args:
      shape: Shape of the head.
      needed: Computes the bytes of VMEM that a kernel needs for a tile.
      interpret: Whether Pallas emulates the kernels.
      devices: Number of devices the batch is split over; by default as the mesh says.
      vmem: Bytes of VMEM that a kernel may take; by default by the kind of device.
      rows: Most rows of a tile, if that is not below the smallest tile; by default any number.

    Raises:
      InputError: If there is no such tile.
    """
    batch = images_per_device(shape, backend="tpu", interpret=interpret, devices=devices)
    limit = vmem_limit() if vmem is None else vmem
    class_chunk = LANES if round_up(shape.num_classes, LANES) % (2 * LANES) else 2 * LANES
    classes = round_up(shape.num_classes, class_chunk)
    smallest = round_up(REGISTER_IMAGES * shape.positions, LANES)
    for images in range(batch // REGISTER_IMAGES * REGISTER_IMAGES, 0, -REGISTER_IMAGES):
        tile = Tile(images, round_up(images * shape.positions, LANES), class_chunk, classes)
        if rows is not None and tile.rows > max(rows, smallest):
            continue
        if batch % images == 0 and needed(tile) <= limit:
            return TpuPlan(
                images,
                shape.positions,
                shape.channel_groups,
                class_chunk,
                shape.dropout,
                interpret,
                limit,
            )
    if batch % REGISTER_IMAGES or not batch:
        raise InputError(
            f"the TPU kernel takes a multiple of {REGISTER_IMAGES} images a device, got {batch}"
        )
    raise InputError("the features and weights of a block do not fit into VMEM")


def pad_kernel(plan: TpuPlan, kernel: jax.Array) -> jax.Array:
    """Pads weights `[head_num, channels, classes]` to whole registers and chunks of classes."""
    _, channels, classes = kernel.shape
    padding = (
        round_up(channels, 16) - channels,
        round_up(classes, plan.class_chunk) - classes,
    )
    return jnp.pad(kernel, [(0, 0), (0, padding[0]), (0, padding[1])])


def scratch_shapes(plan: TpuPlan, dtype: Any) -> Scratch:
    """Gives the buffers of `Scratch` in this dtype."""
    return Scratch(*[pltpu.VMEM((plan.padded_rows, plan.class_chunk), dtype)] * 2)


def clear(*refs: Ref) -> None:
    """Fills the references with zeros."""
    for ref in refs:
        ref[...] = jnp.zeros(ref.shape, ref.dtype)


def attend_block(
    plan: TpuPlan, block: int, refs: BlockRefs, logits_ref: Ref, dropout_at: DropoutAt | None
) -> None:
    """Adds the logits of a block and writes its residuals.

    Args:
      plan: Plan of the kernel.
      block: Which block of the weights and residuals.
      refs: Channels, weights, buffers and residuals.
      logits_ref: `[1, images, classes]`; the logits are added to it.
      dropout_at: Where the block lies in the dropout masks; `None` if dropout is off.
    """
    rows_ref, kernel_ref, scratch_ref, residuals_ref = refs

    def one_class_chunk(index: jax.Array, _: Any) -> int:
        # Scores and values of all images of the tile.
        classes = _window(index, plan.class_chunk)
        scratch_ref.scores[...] = _dot(
            plan, rows_ref.query[...], kernel_ref.query[block, :, classes]
        )
        scratch_ref.values[...] = _dot(
            plan, rows_ref.value[...], kernel_ref.value[block, :, classes]
        )

        def one_image_chunk(index: jax.Array, _: Any) -> int:
            images = _window(index, REGISTER_IMAGES)
            shape = (REGISTER_IMAGES, plan.class_chunk)
            drop_at = _dropout(plan, dropout_at, images, classes)

            # m: the largest score of each image and class.
            def add_to_max(position: jax.Array, m: jax.Array) -> jax.Array:
                return jnp.maximum(m, scratch_ref.scores[_score_rows(plan, position, images)])

            m = _over_positions(plan, add_to_max, jnp.full(shape, -jnp.inf, jnp.float32))

            # l: the sum of the softmax's numerators; out: the sum of the weighed values.
            def add_to_sums(position: jax.Array, sums: tuple) -> tuple:
                l_sum, out = sums
                rows = _score_rows(plan, position, images)
                p = jnp.exp(scratch_ref.scores[rows] - m)
                return l_sum + p, out + p * drop_at(position, scratch_ref.values[rows])

            zeros = jnp.zeros(shape, jnp.float32)
            l_sum, out = _over_positions(plan, add_to_sums, (zeros, zeros))
            out = out / l_sum
            logits_ref[0, images, classes] += out
            residuals_ref.lse[0, block, images, classes] = m + jnp.log(l_sum)
            residuals_ref.out[0, block, images, classes] = out
            return 0

        return jax.lax.fori_loop(0, plan.image_chunks, one_image_chunk, 0)

    jax.lax.fori_loop(0, kernel_ref.query.shape[2] // plan.class_chunk, one_class_chunk, 0)


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
    rows_ref, kernel_ref, scratch_ref, residuals_ref = refs
    columns_ref, d_scratch_ref, d_logits_ref, d_columns_ref, d_kernel_ref = gradient_refs

    def one_class_chunk(index: jax.Array, _: Any) -> int:
        # Scores and values of all images of the tile, as in forward.
        classes = _window(index, plan.class_chunk)
        query_weights = kernel_ref.query[block, :, classes]
        value_weights = kernel_ref.value[block, :, classes]
        scratch_ref.scores[...] = _dot(plan, rows_ref.query[...], query_weights)
        scratch_ref.values[...] = _dot(plan, rows_ref.value[...], value_weights)

        # Gradients of scores and values.
        def one_image_chunk(index: jax.Array, _: Any) -> int:
            images = _window(index, REGISTER_IMAGES)
            drop_at = _dropout(plan, dropout_at, images, classes)
            lse = residuals_ref.lse[0, block, images, classes]
            out = residuals_ref.out[0, block, images, classes]
            d_logits = d_logits_ref[0, images, classes]

            def one_position(position: jax.Array, _: Any) -> int:
                rows = _score_rows(plan, position, images)
                d_values = jnp.exp(scratch_ref.scores[rows] - lse) * d_logits
                d_scores = d_values * (drop_at(position, scratch_ref.values[rows]) - out)
                d_scratch_ref.scores[rows] = d_scores.astype(d_scratch_ref.scores.dtype)
                d_scratch_ref.values[rows] = drop_at(position, d_values).astype(
                    d_scratch_ref.values.dtype
                )
                return 0

            _over_positions(plan, one_position, 0)
            return 0

        jax.lax.fori_loop(0, plan.image_chunks, one_image_chunk, 0)

        # Gradients of weights and features.
        d_scores, d_values = d_scratch_ref
        d_kernel_ref.query[:, classes] += _dot(plan, columns_ref.query[...], d_scores[...])
        d_kernel_ref.value[:, classes] += _dot(plan, columns_ref.value[...], d_values[...])
        d_columns_ref.query[...] += _dot(plan, query_weights, d_scores[...], transposed=True)
        d_columns_ref.value[...] += _dot(plan, value_weights, d_values[...], transposed=True)
        return 0

    jax.lax.fori_loop(0, kernel_ref.query.shape[2] // plan.class_chunk, one_class_chunk, 0)


def _window(index: jax.Array, size: int) -> Any:
    """Gives the window number `index` of so many elements."""
    return pl.ds(pl.multiple_of(index * size, size), size)


def _score_rows(plan: TpuPlan, position: jax.Array, images: Any) -> tuple:
    """Finds where the scores of one position and a chunk of images lie."""
    start = pl.multiple_of(position * plan.images + images.start, REGISTER_IMAGES)
    return pl.ds(start, REGISTER_IMAGES), slice(None)


def _over_positions(plan: TpuPlan, body: Callable, carry: Any) -> Any:
    return jax.lax.fori_loop(0, plan.positions, body, carry, unroll=plan.unroll)


def _dot(
    plan: TpuPlan, left: jax.Array, right: jax.Array, *, transposed: bool = False
) -> jax.Array:
    """Multiplies `left` by `right`, or by its transpose."""
    contracting = (1, 1 if transposed else 0)
    return wide_dot(left, right, contracting, interpret=plan.interpret)


def _dropout(
    plan: TpuPlan, at: DropoutAt | None, images: Any, classes: Any
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Gives `(position, x) -> x` with dropout, for `x` of a chunk of images and classes."""
    if at is None:
        return lambda position, x: x
    shape = (REGISTER_IMAGES, plan.class_chunk)
    image = at.seeds_ref[2] + at.tile * plan.images + images.start
    rows = row_seed(
        (at.seeds_ref[0], at.seeds_ref[1]),
        image + jax.lax.broadcasted_iota(jnp.int32, shape, 0),
        at.block,
        classes.start + jax.lax.broadcasted_iota(jnp.int32, shape, 1),
    )
    return lambda position, x: drop(x, rows, position, plan.dropout)
