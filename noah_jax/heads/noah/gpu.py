"""POCA as Pallas kernels for NVIDIA GPUs, by Triton: scores and values never leave the chip.

It is flash attention with the weights of a tile of classes for queries: a program takes one image
and one block of the head, and goes through the positions in tiles with an online softmax. Forward
keeps for backward the log-sum-exp of the scores and every block's output; the formulas are those
of `chunked.py`. Backward computes scores and values twice, so that nothing is added
atomically: one kernel gives the features' gradients, with the classes in its inner loop, the
other the weights', with images and positions there. It compiles for H100; none has run it.

Triton knows only powers of two. Positions and classes fill their tiles with what masks leave out;
channels are cut into pieces, so that 96 are 64 and 32 and not 128.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from noah_jax.heads.noah.chunked import Operands
from noah_jax.heads.noah.tpu import devices_of, differentiated_once, images_of_a_device, round_up
from noah_jax.nn import dropout as dropouts

_MIN = 16  # no side of a matrix product may be smaller
_BYTES = 1024  # of a position's channels in one block, at most; more spill an H100's registers
_WARPS = 2048  # that keep every multiprocessor busy
_GRID = 2**16 - 1  # programs along the last axis of a grid, at most
_LOG2E = math.log2(math.e)


class Plan(NamedTuple):
    """What the kernels are specialised to.

    Attributes:
      positions: of a tile, where they are in the inner loop.
      rows: positions of a tile, where the classes are.
      classes: of a tile.
      images: whose gradients of the weights one program adds up.
      warps: of a program.
      rate: of the dropout; 0 for none.
      interpret: whether the kernels are emulated, on a CPU.
    """

    positions: int
    rows: int
    classes: int
    images: int
    warps: int
    rate: float
    interpret: bool


def gpu_plan(
    operands: Operands,
    *,
    dropout: float = 0.0,
    interpret: bool = False,
    devices: int | None = None,
) -> Plan | None:
    """How the kernels would compute it, or `None` where shapes do not fit.

    Args:
      operands: features and weights.
      dropout: rate of the dropout on the values.
      interpret: whether the kernels are to be emulated.
      devices: among how many the batch is split; by default as `sharded_poca` splits it.
    """
    batch = images_of_a_device(operands, devices or devices_of(interpret, "gpu"))
    if batch is None:
        return None
    positions, dtype = operands.query_part.shape[2], operands.query_part.dtype
    head_num, query_channels, num_classes = operands.query_kernel.shape
    widths = query_channels, operands.value_kernel.shape[1] + bool(dropout)
    channels = sum(round_up(width, _MIN) for width in widths)
    if not 0 < batch <= _GRID or channels * dtype.itemsize > _BYTES:
        return None
    # Tiles and warps with which nothing spills either.
    narrow = dtype == jnp.bfloat16
    largest = 64 if narrow else 32
    tile = min((largest, 32), key=lambda tile: round_up(positions, tile))  # leaves less empty
    classes = _tile(num_classes, largest)
    warps = 4 if narrow and channels <= 128 else 8
    warps_an_image = pl.cdiv(num_classes, classes) * head_num * warps
    return Plan(
        _tile(positions, tile),
        _tile(positions, largest),
        classes,
        pl.cdiv(batch, pl.cdiv(_WARPS, warps_an_image)),
        warps,
        dropout,
        interpret,
    )


def gpu_poca(plan: Plan, operands: Operands, seeds: dropouts.Seeds | None) -> jax.Array:
    """float32 logits, `[batch, classes]`; see `noah_jax.heads.noah.poca.poca`.

    Args:
      plan: by `gpu_plan`.
      operands: features and weights.
      seeds: of the dropout's masks; `None` switches it off.
    """
    query_part, value_part, query_kernel, value_kernel, bias = operands
    if seeds is None:
        numbers = jnp.zeros((2,), jnp.int32)
        plan = plan._replace(rate=0.0)
    else:
        # Dropout falls on values with their bias: one more channel, of ones.
        value_part = jnp.concatenate([value_part, jnp.ones_like(value_part[..., :1])], -1)
        value_kernel = jnp.concatenate([value_kernel, bias[:, None]], 1)
        numbers = jnp.concatenate([seeds.words, seeds.images])
    logits = _poca(plan, query_part, value_part, query_kernel, value_kernel, numbers)
    return logits if plan.rate else logits + bias.sum(0)


def _tile(size: int, largest: int) -> int:
    return min(max(pl.next_power_of_2(size), _MIN), largest)


def _pieces(channels: int) -> list[tuple[int, int]]:
    """Where pieces begin and how long they are; the last may reach beyond the channels."""
    pieces, start = [], 0
    while start < channels:
        rest = round_up(channels - start, _MIN)
        size = 2 ** (rest.bit_length() - 1)
        pieces.append((start, size))
        start += size
    return pieces


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _poca(plan, query_part, value_part, query_kernel, value_kernel, numbers):
    """`[batch, classes]` from parts `[groups, batch, positions, channels]`."""
    return _forward(plan, query_part, value_part, query_kernel, value_kernel, numbers)[0]


def _forward(plan, *operands):
    kept = _outputs(plan, *operands)
    return kept[1].sum(1), (operands, kept)


def _backward(plan, residuals, cotangent):
    operands, kept = residuals
    to_parts = _feature_gradients(plan, operands, kept, cotangent)
    return *to_parts, *_weight_gradients(plan, operands, kept, cotangent), None


_poca.defvjp(_forward, _backward)


@differentiated_once
def _outputs(plan, *operands):
    """Binary log-sum-exp and output of every block, each `[batch, head_num, classes]`."""
    batch = operands[0].shape[1]
    head_num, _, classes = operands[2].shape
    kept = jax.ShapeDtypeStruct((batch, head_num, classes), jnp.float32)
    grid = pl.cdiv(classes, plan.classes), head_num, batch
    return _call(plan, _forward_kernel, "noah_head_forward", grid, operands, (), [kept, kept])


@differentiated_once
def _feature_gradients(plan, operands, kept, cotangent):
    """Gradients of both parts."""
    parts = operands[:2]
    groups, batch, positions, _ = parts[0].shape
    return _call(
        plan,
        _features_kernel,
        "noah_head_backward_features",
        (pl.cdiv(positions, plan.rows), groups, batch),
        operands,
        (*kept, cotangent),
        [jax.ShapeDtypeStruct(part.shape, part.dtype) for part in parts],
    )


@differentiated_once
def _weight_gradients(plan, operands, kept, cotangent):
    """Gradients of both kernels."""
    kernels = operands[2:4]
    head_num, _, classes = kernels[0].shape
    chunks = pl.cdiv(operands[0].shape[1], plan.images)
    sums = _call(
        plan,
        _weights_kernel,
        "noah_head_backward_weights",
        (pl.cdiv(classes, plan.classes), head_num, chunks),
        operands,
        (*kept, cotangent),
        [jax.ShapeDtypeStruct((chunks, *kernel.shape), jnp.float32) for kernel in kernels],
    )
    return [total.sum(0).astype(kernel.dtype) for total, kernel in zip(sums, kernels, strict=True)]


def _call(plan, kernel, name, grid, operands, others, out_shape):
    """Runs a kernel on whole arrays; it takes of them what its place in the grid needs."""
    *operands, numbers = operands
    return pl.pallas_call(
        functools.partial(kernel, plan),
        grid=grid,
        out_shape=out_shape,
        compiler_params=plgpu.CompilerParams(num_warps=plan.warps, num_stages=2),
        interpret=plan.interpret,
        name=name,
    )(numbers, *(x.astype(operands[0].dtype) for x in operands), *others)


def _forward_kernel(
    plan, numbers, query_part, value_part, query_kernel, value_kernel, log_sums, outs
):
    tile, block, image = (pl.program_id(axis) for axis in range(3))
    group = _group(query_part, query_kernel, block)
    positions, num_classes = query_part.shape[2], query_kernel.shape[2]
    start = tile * plan.classes
    classes = start + jnp.arange(plan.classes)
    weights = [_load_weights(plan, kernel, block, start) for kernel in (query_kernel, value_kernel)]

    def add(index, carry):
        largest, total, out = carry
        start = index * plan.positions
        spots = start + jnp.arange(plan.positions)
        scores, values = (
            _product(plan, kernel, _load_part(part, group, image, start, plan.positions), (0, 1))
            for kernel, part in zip(weights, (query_part, value_part), strict=True)
        )
        scores = jnp.where((spots < positions)[None], scores * _LOG2E, -jnp.inf)
        values = _keep(plan, numbers, (image, block, classes[:, None], spots[None]), values)
        new = jnp.maximum(largest, scores.max(1))
        attention = jnp.exp2(scores - new[:, None])
        shrink = jnp.exp2(largest - new)
        total = total * shrink + attention.sum(1)
        return new, total, out * shrink + (attention * values).sum(1)

    zeros = jnp.zeros((plan.classes,), jnp.float32)
    largest, total, out = jax.lax.fori_loop(
        0, pl.cdiv(positions, plan.positions), add, (zeros - jnp.inf, zeros, zeros)
    )
    for ref, x in (log_sums, largest + jnp.log2(total)), (outs, out / total):
        plgpu.store(ref.at[image, block, pl.ds(start, plan.classes)], x, mask=classes < num_classes)


def _features_kernel(
    plan, numbers, query_part, value_part, query_kernel, value_kernel, log_sums, outs, cotangent,
    to_query_part, to_value_part,
):  # fmt: skip
    tile, group, image = (pl.program_id(axis) for axis in range(3))
    blocks = query_kernel.shape[0] // query_part.shape[0]  # that see these channels
    tiles = pl.cdiv(query_kernel.shape[2], plan.classes)
    first = tile * plan.rows
    spots = first + jnp.arange(plan.rows)
    parts = [_load_part(part, group, image, first, plan.rows) for part in (query_part, value_part)]

    def add(index, sums):
        block = group * blocks + jax.lax.div(index, tiles)
        start = jax.lax.rem(index, tiles) * plan.classes
        classes = start + jnp.arange(plan.classes)
        weights = [
            _load_weights(plan, kernel, block, start) for kernel in (query_kernel, value_kernel)
        ]
        scores, values = (
            _product(plan, part, kernel, (1, 0))
            for part, kernel in zip(parts, weights, strict=True)
        )
        log_sum, out, scale = (
            x[None] for x in _load_kept(plan, log_sums, outs, cotangent, image, block, start)
        )
        where = image, block, classes[None], spots[:, None]
        gradients = _from_logits(plan, numbers, where, scores, values, log_sum, out, scale)
        return [
            [
                total + _dot(plan, gradient.astype(piece.dtype), piece, (1, 1))
                for total, piece in zip(totals, kernel, strict=True)
            ]
            for totals, gradient, kernel in zip(sums, gradients, weights, strict=True)
        ]

    zeros = [[jnp.zeros(piece.shape, jnp.float32) for piece in part] for part in parts]
    sums = jax.lax.fori_loop(0, blocks * tiles, add, zeros)
    for ref, totals in zip((to_query_part, to_value_part), sums, strict=True):
        for columns, total in zip(_pieces(ref.shape[-1]), totals, strict=True):
            view, mask = _tile_of(ref, (group, image), (first, plan.rows), columns)
            plgpu.store(view, total.astype(ref.dtype), mask=mask)


def _weights_kernel(
    plan, numbers, query_part, value_part, query_kernel, value_kernel, log_sums, outs, cotangent,
    to_query_kernel, to_value_kernel,
):  # fmt: skip
    tile, block, chunk = (pl.program_id(axis) for axis in range(3))
    group = _group(query_part, query_kernel, block)
    _, batch, positions, _ = query_part.shape
    tiles = pl.cdiv(positions, plan.positions)
    first = tile * plan.classes
    classes = first + jnp.arange(plan.classes)
    weights = [_load_weights(plan, kernel, block, first) for kernel in (query_kernel, value_kernel)]

    def add(index, sums):
        image = chunk * plan.images + jax.lax.div(index, tiles)
        start = jax.lax.rem(index, tiles) * plan.positions
        spots = start + jnp.arange(plan.positions)
        parts = [
            _load_part(part, group, image, start, plan.positions)
            for part in (query_part, value_part)
        ]
        scores, values = (
            _product(plan, kernel, part, (0, 1))
            for part, kernel in zip(parts, weights, strict=True)
        )
        # Where there is no position features are zero, and so are scores: too large for `exp2`
        # where the others are far below.
        scores = jnp.where((spots < positions)[None], scores, -jnp.inf)
        log_sum, out, scale = (
            x[:, None] for x in _load_kept(plan, log_sums, outs, cotangent, image, block, first)
        )
        where = image, block, classes[:, None], spots[None]
        gradients = _from_logits(plan, numbers, where, scores, values, log_sum, out, scale)
        return [
            [
                total + _dot(plan, gradient.astype(piece.dtype), piece, (1, 0))
                for total, piece in zip(totals, part, strict=True)
            ]
            for totals, gradient, part in zip(sums, gradients, parts, strict=True)
        ]

    zeros = [[jnp.zeros(piece.shape[::-1], jnp.float32) for piece in kernel] for kernel in weights]
    images = jnp.minimum(batch - chunk * plan.images, plan.images)
    sums = jax.lax.fori_loop(0, images * tiles, add, zeros)
    for ref, totals in zip((to_query_kernel, to_value_kernel), sums, strict=True):
        for rows, total in zip(_pieces(ref.shape[2]), totals, strict=True):
            view, mask = _tile_of(ref, (chunk, block), rows, (first, plan.classes))
            plgpu.store(view, total.T, mask=mask)


def _group(part, kernel, block):
    """Which channels a block sees."""
    return jax.lax.div(block, kernel.shape[0] // part.shape[0])


def _from_logits(plan, numbers, where, scores, values, log_sum, out, scale):
    """Gradients of scores and values."""
    to_values = jnp.exp2(scores * _LOG2E - log_sum) * scale
    to_scores = to_values * (_keep(plan, numbers, where, values) - out)
    return to_scores, _keep(plan, numbers, where, to_values)


def _tile_of(ref, index, rows, columns):
    """Part of a matrix, and what of it exists, by rows and columns `(start, size)`."""
    # Indices, for a slice may not reach beyond the end.
    rows, columns = (start + jnp.arange(size) for start, size in (rows, columns))
    rows, columns = rows[:, None], columns[None]
    view = ref.at[(*index, rows, columns)]
    return view, (rows < ref.shape[-2]) & (columns < ref.shape[-1])


def _load(ref, index, rows, columns):
    view, mask = _tile_of(ref, index, rows, columns)
    return plgpu.load(view, mask=mask, other=0.0)


def _load_part(part, group, image, start, positions):
    """Pieces `[positions, channels]` of an image's features."""
    return [
        _load(part, (group, image), (start, positions), piece) for piece in _pieces(part.shape[3])
    ]


def _load_weights(plan, kernel, block, start):
    """Pieces `[channels, classes]` of a block's weights."""
    columns = start, plan.classes
    return [_load(kernel, (block,), piece, columns) for piece in _pieces(kernel.shape[1])]


def _load_kept(plan, log_sums, outs, cotangent, image, block, start):
    """Log-sum-exp, outputs and cotangents of some classes; zeros where there are none."""
    classes = pl.ds(start, plan.classes)
    mask = start + jnp.arange(plan.classes) < cotangent.shape[1]
    views = log_sums.at[image, block, classes], outs.at[image, block, classes]
    return [plgpu.load(x, mask=mask, other=0.0) for x in (*views, cotangent.at[image, classes])]


def _product(plan, left, right, contracting):
    """Of matrices in pieces, over the axis that is cut."""
    products = [_dot(plan, a, b, contracting) for a, b in zip(left, right, strict=True)]
    return functools.reduce(jnp.add, products)


def _dot(plan, left, right, contracting):
    if plan.interpret:  # XLA's CPU backend does not know bfloat16 products with a wide result
        left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    return jax.lax.dot_general(
        left,
        right,
        (([contracting[0]], [contracting[1]]), ((), ())),
        # Else products of float32 are of TF32.
        precision=jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )


def _keep(plan, numbers, where, x):
    """`x` with dropout; `where` it lies: image, block, classes and positions."""
    if not plan.rate:
        return x
    image, block, classes, positions = where
    words = numbers[0], numbers[1]
    rows = dropouts.row_seed(words, numbers[2 + image], block, classes)
    return jnp.where(dropouts.kept(rows, positions, plan.rate), x / (1 - plan.rate), 0.0)
