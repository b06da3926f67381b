"""POCA's kernel for TPUs on the feature maps of convolutional networks.

XLA lays such a map out as `[*spatial, batch, channels]`: kernels that take it whole, as it lies,
and write its gradient whole spare the slices, transpositions and joins that
`tpu.py` needs round its own, which for ResNet-50 cost almost as much as the kernels.
What happens to a block of the head is the same.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from noah_jax.heads.noah.chunked import Operands, Weights
from noah_jax.heads.noah.tpu import (
    IMAGES,
    LANES,
    Plan,
    attend,
    chunk_of,
    compiler_params,
    devices_of,
    differentiate,
    differentiated_once,
    images_of_a_device,
    padded_kernel,
    round_up,
    vmem_limit,
)
from noah_jax.nn.per_device import on_each_device


def map_plan(
    features: jax.Array, operands: Operands, *, interpret: bool = False, devices: int | None = None
) -> Plan | None:
    """How the kernels would compute it, or `None` where shapes do not tile or fit into VMEM.

    Args:
      features: `[batch, rows, columns, channels]`; of another rank there is no such kernel.
      operands: the features' parts, and weights, without dropout.
      interpret: whether the kernels are to be emulated.
      devices: among how many the batch is split; by default as `sharded_map_poca` splits it.
    """
    batch = images_of_a_device(operands, devices or devices_of(interpret))
    if features.ndim != 4 or batch is None:
        return None
    groups, _, positions, _ = operands.query_part.shape
    widths = operands.query_kernel.shape[1], operands.value_kernel.shape[1]
    head_num, _, num_classes = operands.query_kernel.shape
    if groups != head_num or head_num * sum(widths) != features.shape[-1]:  # not split
        return None
    itemsize = features.dtype.itemsize
    limit = vmem_limit()
    chunk = chunk_of(num_classes)
    classes = round_up(num_classes, chunk)
    channels = sum(round_up(width, 16) for width in widths)
    lanes = sum(round_up(width, LANES) for width in widths)
    for images in range(batch // IMAGES * IMAGES, 0, -IMAGES):
        rows = round_up(images * positions, LANES)
        needed = (
            4 * rows * features.shape[-1] * itemsize  # the map and its gradient, two buffers each
            + head_num * channels * classes * (8 + itemsize)  # gradients, two buffers; weights
            + rows * (lanes + channels) * itemsize  # a block's channels, and transposed
            + rows * channels * 4  # sums of their gradients
            + 2 * rows * chunk * (4 + itemsize)  # scores, values and their gradients
            + 4 * (1 + head_num) * images * classes * 4  # log-sum-exp, outputs, cotangents
        )
        if batch % images == 0 and needed <= limit:
            return Plan(images, positions, groups, chunk, 0.0, interpret, limit)
    return None


def sharded_map_poca(plan: Plan, features: jax.Array, weights: Weights) -> jax.Array:
    """`map_poca` on each device's part of the batch."""
    specs = lambda axes: (jax.P(axes), *[jax.P()] * 3)  # noqa: E731
    return on_each_device(functools.partial(map_poca, plan), specs, features, *weights)


def map_poca(
    plan: Plan,
    features: jax.Array,
    query_kernel: jax.Array,
    value_kernel: jax.Array,
    bias: jax.Array,
) -> jax.Array:
    """float32 logits, `[batch, classes]`; see `noah_jax.heads.noah.poca.poca`.

    Args:
      plan: by `map_plan`.
      features: `[batch, rows, columns, channels]`.
      query_kernel: `[head_num, channels, classes]`.
      value_kernel: likewise.
      bias: of the values, `[head_num, classes]`.
    """
    batch, *_, channels = features.shape
    features = features.transpose(1, 2, 0, 3).reshape(plan.positions, batch, channels)
    widths = query_kernel.shape[1], value_kernel.shape[1]
    kernels = [padded_kernel(plan, kernel) for kernel in (query_kernel, value_kernel)]
    logits = _poca(plan, widths, features, *kernels)
    logits = logits.reshape(batch, -1)[:, : query_kernel.shape[-1]]
    return logits + bias.sum(0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _poca(plan, widths, features, query_kernel, value_kernel):
    """`[tiles, images, classes]` from `[positions, batch, channels]`."""
    return _outputs(plan, widths, features, query_kernel, value_kernel)[0]


def _forward(plan, widths, *operands):
    logits, *kept = _outputs(plan, widths, *operands)
    return logits, (*operands, kept)


def _backward(plan, widths, residuals, cotangent):
    return _gradients(plan, widths, residuals, cotangent)


_poca.defvjp(_forward, _backward)


@functools.partial(differentiated_once, static=(0, 1))
def _outputs(plan, widths, features, query_kernel, value_kernel):
    """Logits, and log-sum-exp and output of every block."""
    head_num, _, classes = query_kernel.shape
    tiles = features.shape[1] // plan.images
    weights = [kernel.astype(features.dtype) for kernel in (query_kernel, value_kernel)]
    logits = jax.ShapeDtypeStruct((tiles, plan.images, classes), jnp.float32)
    per_block = jax.ShapeDtypeStruct((tiles, head_num, plan.images, classes), jnp.float32)
    return pl.pallas_call(
        functools.partial(_forward_kernel, plan, widths),
        grid=(tiles,),
        in_specs=[_map_spec(plan, features), *map(_weights_spec, weights)],
        out_specs=[_tile_spec(x) for x in (logits, per_block, per_block)],
        out_shape=[logits, per_block, per_block],
        scratch_shapes=[*_rows(plan, features.dtype, weights), *_chunks(plan, jnp.float32)],
        compiler_params=compiler_params(plan),
        interpret=plan.interpret,
        name="noah_head_forward",
    )(features, *weights)


@functools.partial(differentiated_once, static=(0, 1))
def _gradients(plan, widths, residuals, cotangent):
    """Gradients of the map and both kernels."""
    features, query_kernel, value_kernel, kept = residuals
    kernels = query_kernel, value_kernel
    weights = [kernel.astype(features.dtype) for kernel in kernels]
    shapes = [(kernel.shape[1], round_up(plan.rows, LANES)) for kernel in kernels]
    to_features, *to_kernels = pl.pallas_call(
        functools.partial(_backward_kernel, plan, widths),
        grid=(features.shape[1] // plan.images,),
        in_specs=[
            _map_spec(plan, features),
            *map(_weights_spec, weights),
            *(_tile_spec(x) for x in (*kept, cotangent)),
        ],
        out_specs=[_map_spec(plan, features), *map(_whole_spec, kernels)],
        out_shape=[
            jax.ShapeDtypeStruct(features.shape, features.dtype),
            *(jax.ShapeDtypeStruct(kernel.shape, jnp.float32) for kernel in kernels),
        ],
        scratch_shapes=[
            *_rows(plan, features.dtype, weights),
            *(pltpu.VMEM(shape, features.dtype) for shape in shapes),
            *(pltpu.VMEM(shape, jnp.float32) for shape in shapes),
            *_chunks(plan, jnp.float32),
            *_chunks(plan, features.dtype),
        ],
        compiler_params=compiler_params(plan),
        interpret=plan.interpret,
        name="noah_head_backward",
    )(features, *weights, *kept, cotangent)
    return to_features, *(
        gradient.astype(kernel.dtype) for gradient, kernel in zip(to_kernels, kernels, strict=True)
    )


def _map_spec(plan, features):
    positions, _, channels = features.shape
    return pl.BlockSpec((positions, plan.images, channels), lambda tile: (0, tile, 0))


def _whole_spec(x, **options):
    return pl.BlockSpec(x.shape, lambda _: (0,) * x.ndim, **options)


def _weights_spec(x):
    return _whole_spec(x, pipeline_mode=pl.Buffered(1))  # of what is the same for all tiles


def _tile_spec(x):
    return pl.BlockSpec((1, *x.shape[1:]), lambda tile: (tile, *(0,) * (x.ndim - 1)))


def _rows(plan, dtype, kernels):
    rows = round_up(plan.rows, LANES)
    return [pltpu.VMEM((rows, kernel.shape[1]), dtype) for kernel in kernels]


def _chunks(plan, dtype):
    return [pltpu.VMEM((round_up(plan.rows, LANES), plan.chunk), dtype)] * 2


def _channels(widths, head_num):
    """Where query and value channels of each block lie in the map."""
    query, value = widths
    for block in range(head_num):
        start = head_num * query + block * value
        yield slice(block * query, (block + 1) * query), slice(start, start + value)


def _load(plan, features, channels, rows):
    for part, to in zip(channels, rows, strict=True):
        width = part.stop - part.start
        to[: plan.rows, :width] = features[:, :, part].reshape(plan.rows, width)


def _clear(*refs):
    """Fills with zeros."""
    for ref in refs:
        ref[...] = jnp.zeros(ref.shape, ref.dtype)


def _forward_kernel(
    plan, widths, features, query_kernel, value_kernel,
    logits, log_sums, outs, query_rows, value_rows, scores, values,
):  # fmt: skip
    rows = query_rows, value_rows

    @pl.when(pl.program_id(0) == 0)
    def _():
        _clear(*rows)  # no block writes what fills a tile

    _clear(logits)
    for block, channels in enumerate(_channels(widths, len(query_kernel))):
        _load(plan, features, channels, rows)
        attend(
            plan, block, rows, (query_kernel, value_kernel), (scores, values),
            (logits, log_sums, outs),
        )  # fmt: skip


def _backward_kernel(
    plan, widths, features, query_kernel, value_kernel, log_sums, outs, cotangent,
    to_features, to_query_kernel, to_value_kernel,
    query_rows, value_rows, query_columns, value_columns, to_query_columns, to_value_columns,
    scores, values, to_scores, to_values,
):  # fmt: skip
    rows, columns = (query_rows, value_rows), (query_columns, value_columns)
    to_columns = to_query_columns, to_value_columns

    @pl.when(pl.program_id(0) == 0)
    def _():
        _clear(to_query_kernel, to_value_kernel, to_scores, to_values, *rows)

    for block, channels in enumerate(_channels(widths, len(query_kernel))):
        _load(plan, features, channels, rows)
        for of, to in zip(rows, columns, strict=True):
            to[...] = of[...].T
        _clear(*to_columns)
        differentiate(
            plan, block, rows, columns, (query_kernel, value_kernel),
            (scores, values, to_scores, to_values), (log_sums, outs, cotangent), to_columns,
            (to_query_kernel.at[block], to_value_kernel.at[block]),
        )  # fmt: skip
        for part, of in zip(channels, to_columns, strict=True):
            gradient = of[...].astype(to_features.dtype).T
            width = part.stop - part.start
            shape = plan.positions, plan.images, width
            to_features[:, :, part] = gradient[: plan.rows, :width].reshape(shape)
