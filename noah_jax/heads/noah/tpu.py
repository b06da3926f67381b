"""POCA as a Pallas kernel for TPUs: scores and values never leave on-chip memory.

Each step of the grid takes a tile of images and one block of the head. Its scores and values,
`[positions * images, classes]`, are computed a chunk of classes at a time in VMEM; with the
images in the sublanes the sums over positions are plain additions of registers. Features come
transposed, `[channels, positions * images]`, because few channels would fill few lanes.

Forward keeps for backward the log-sum-exp of the scores and every block's output; the formulas
are those of `noah_jax.heads.noah.chunked`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from noah_jax.heads.noah.chunked import Operands
from noah_jax.nn import dropout as dropouts
from noah_jax.nn.per_device import on_each_device

LANES = 128
IMAGES = 16  # rows of a register of bfloat16
_UNROLL = 14  # positions at most that one trip of the innermost loops takes
_ROWS = 6400  # positions times images of a tile
_MIB = 2**20
# VMEM of a core by the kind of device, of which kernels may take the most part.
_VMEM = {"v4": 16, "v5p": 64, "v5": 64, "v5e": 128, "v5 lite": 128, "v6e": 128, "v6 lite": 128}
_VMEM_SHARE = 0.78


class Plan(NamedTuple):
    """What the kernels are specialised to.

    Attributes:
      images: of a tile.
      positions: of an image.
      groups: of channels: one, or one for every block.
      chunk: classes worked on at a time.
      rate: of the dropout; 0 for none.
      interpret: whether the kernels are emulated, on a CPU.
      vmem: bytes of on-chip memory that they may take.
    """

    images: int
    positions: int
    groups: int
    chunk: int
    rate: float
    interpret: bool
    vmem: int

    @property
    def rows(self) -> int:
        """Of a tile's scores."""
        return self.positions * self.images

    @property
    def groups_of_images(self) -> int:
        """In a tile; the inner loops work on one group."""
        return self.images // IMAGES

    @property
    def unroll(self) -> int:
        """Positions that one trip of the innermost loops takes."""
        return max(n for n in range(1, _UNROLL + 1) if self.positions % n == 0)


def tpu_plan(
    operands: Operands,
    *,
    dropout: float = 0.0,
    interpret: bool = False,
    devices: int | None = None,
) -> Plan | None:
    """How the kernels would compute it, or `None` where shapes do not tile or fit into VMEM.

    Args:
      operands: features and weights.
      dropout: rate of the dropout on the values.
      interpret: whether the kernels are to be emulated.
      devices: among how many the batch is split; by default as `sharded_poca` splits it.
    """
    batch = images_of_a_device(operands, devices or devices_of(interpret))
    if batch is None:
        return None
    groups, _, positions, _ = operands.query_part.shape
    head_num, query_channels, num_classes = operands.query_kernel.shape
    itemsize = operands.query_part.dtype.itemsize
    limit = vmem_limit()
    chunk = chunk_of(num_classes)
    classes = round_up(num_classes, chunk)
    channels = round_up(query_channels, 16) + round_up(
        operands.value_kernel.shape[1] + bool(dropout), 16
    )
    for images in range(batch // IMAGES * IMAGES, 0, -IMAGES):
        rows = round_up(images * positions, LANES)
        features = rows * channels
        needed = (
            head_num * channels * classes * 4  # gradients of the weights
            + 2 * channels * classes * itemsize  # the weights
            + features * itemsize * 4  # features and their gradients, two buffers of each
            + features * 4  # sums of the gradients
            + rows * round_up(channels, LANES) * itemsize  # features, transposed
            + 2 * rows * chunk * (4 + itemsize)  # scores, values and their gradients
            + 8 * images * classes * 4  # logits, log-sum-exp, outputs, cotangents
        )
        fits = rows <= max(_ROWS, round_up(IMAGES * positions, LANES)) and needed <= limit
        if batch % images == 0 and fits:
            return Plan(images, positions, groups, chunk, dropout, interpret, limit)
    return None


def sharded_poca(
    kernel: Callable, plan: Any, operands: Operands, seeds: dropouts.Seeds | None
) -> jax.Array:
    """`kernel`, such as `pallas_poca`, on each device's part of the batch."""

    def specs(axes):
        part = jax.P(None, axes)
        of_operands = Operands(part, part, jax.P(), jax.P(), jax.P())
        return of_operands, seeds and dropouts.Seeds(jax.P(), jax.P(axes))

    return on_each_device(functools.partial(kernel, plan), specs, operands, seeds)


def pallas_poca(plan: Plan, operands: Operands, seeds: dropouts.Seeds | None) -> jax.Array:
    """float32 logits, `[batch, classes]`; see `noah_jax.heads.noah.poca.poca`.

    Args:
      plan: by `tpu_plan`.
      operands: features and weights.
      seeds: of the dropout's masks, for consecutive images; `None` switches it off.
    """
    query_part, value_part, query_kernel, value_kernel, bias = operands
    if seeds is None:
        numbers = jnp.zeros((3,), jnp.int32)
        plan = plan._replace(rate=0.0)
    else:
        # Dropout falls on values with their bias: one more channel, of ones.
        value_part = jnp.concatenate([value_part, jnp.ones_like(value_part[..., :1])], -1)
        value_kernel = jnp.concatenate([value_kernel, bias[:, None]], 1)
        numbers = jnp.append(seeds.words, seeds.images[0])
    parts = [_tiled(plan, part) for part in (query_part, value_part)]
    kernels = [padded_kernel(plan, kernel) for kernel in (query_kernel, value_kernel)]
    logits = _tiles_poca(plan, *parts, *kernels, numbers)
    logits = logits.reshape(-1, logits.shape[-1])[:, : query_kernel.shape[-1]]
    return logits if plan.rate else logits + bias.sum(0)


def devices_of(interpret: bool, backend: str = "tpu") -> int | None:
    """Over how many devices of a backend the batch is split; `None` where nothing tells."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.auto_axes:
        return mesh.size if len(mesh.auto_axes) == len(mesh.axis_names) else None
    alone = jax.default_backend() == backend and jax.device_count() == 1
    return 1 if mesh.manual_axes or interpret or alone else None


def images_of_a_device(operands: Operands, devices: int | None) -> int | None:
    """How many images each device has; `None` where no kernel takes them, on any platform."""
    _, batch, positions, _ = operands.query_part.shape
    if devices is None or batch % devices or not positions:
        return None
    narrow_or_single = operands.query_part.dtype in (jnp.bfloat16, jnp.float32)
    return batch // devices if narrow_or_single and not jax.config.jax_enable_x64 else None


def vmem_limit() -> int:
    """Bytes of VMEM that a kernel may take on the devices of the mesh, or else of this process.

    Of unknown TPUs little is expected; where there are none, as when emulated, v5e's.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None and jax.default_backend() == "tpu":
        device = jax.devices()[0]
    kind = getattr(device, "device_kind", "")
    size = min(_VMEM.values()) if kind.startswith("TPU") else _VMEM["v5e"]
    return int(_VMEM_SHARE * _MIB * _VMEM.get(kind.removeprefix("TPU "), size))


def chunk_of(num_classes: int) -> int:
    """Classes worked on at a time."""
    return LANES if round_up(num_classes, LANES) % (2 * LANES) else 2 * LANES


def round_up(n: int, multiple: int) -> int:
    return math.ceil(n / multiple) * multiple


def _tiled(plan: Plan, part: jax.Array) -> jax.Array:
    """`[groups, batch, positions, channels]` -> `[tiles, groups, channels, rows]`, filled."""
    groups, batch, positions, channels = part.shape
    shape = (groups, batch // plan.images, plan.images, positions, channels)
    part = part.reshape(shape).transpose(1, 0, 4, 3, 2).reshape(-1, groups, channels, plan.rows)
    fill = round_up(channels, 16) - channels, round_up(plan.rows, LANES) - plan.rows
    return jnp.pad(part, [(0, 0), (0, 0), (0, fill[0]), (0, fill[1])])


def padded_kernel(plan: Plan, kernel: jax.Array) -> jax.Array:
    _, channels, classes = kernel.shape
    fill = round_up(channels, 16) - channels, round_up(classes, plan.chunk) - classes
    return jnp.pad(kernel, [(0, 0), (0, fill[0]), (0, fill[1])])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tiles_poca(plan, query_part, value_part, query_kernel, value_kernel, seeds):
    """`[tiles, images, classes]` from parts `[tiles, groups, channels, rows]`."""
    return _outputs(plan, query_part, value_part, query_kernel, value_kernel, seeds)[0]


def _forward(plan, *operands):
    logits, *kept = _outputs(plan, *operands)
    return logits, (*operands, kept)


def _backward(plan, residuals, cotangent):
    return *_gradients(plan, residuals, cotangent), None


_tiles_poca.defvjp(_forward, _backward)


def differentiated_once(f: Callable, *, static: tuple[int, ...] = (0,)) -> Callable:
    """Refuses in a plain word what would fail deep inside JAX; `static` is not an array."""

    def refuse(*_):
        raise NotImplementedError(
            "the kernel of the NOAH head has no second derivatives; pass implementation='xla'"
        )

    f = jax.custom_vjp(f, nondiff_argnums=static)
    f.defvjp(refuse, refuse)
    return f


@differentiated_once
def _outputs(plan, query_part, value_part, query_kernel, value_kernel, seeds):
    """Logits, and log-sum-exp and output of every block."""
    tiles, _, _, rows = query_part.shape
    head_num, _, classes = query_kernel.shape
    dtype = query_part.dtype
    weights = query_kernel.astype(dtype), value_kernel.astype(dtype)
    per_block = jax.ShapeDtypeStruct((tiles, head_num, plan.images, classes), jnp.float32)
    return pl.pallas_call(
        functools.partial(_forward_kernel, plan),
        grid=(tiles, head_num),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            _part_spec(query_part),
            _part_spec(value_part),
            *(_kernel_spec(kernel) for kernel in weights),
        ],
        out_specs=[
            pl.BlockSpec((1, plan.images, classes), lambda tile, _: (tile, 0, 0)),
            _block_spec(per_block),
            _block_spec(per_block),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((tiles, plan.images, classes), jnp.float32),
            per_block,
            per_block,
        ],
        scratch_shapes=[
            *(pltpu.VMEM((rows, part.shape[2]), dtype) for part in (query_part, value_part)),
            *[pltpu.VMEM((rows, plan.chunk), jnp.float32)] * 2,
        ],
        compiler_params=compiler_params(plan),
        interpret=plan.interpret,
        name="noah_head_forward",
    )(seeds, query_part, value_part, *weights)


@differentiated_once
def _gradients(plan, residuals, cotangent):
    """Gradients of both parts and both kernels."""
    query_part, value_part, query_kernel, value_kernel, seeds, kept = residuals
    tiles, _, _, rows = query_part.shape
    head_num = len(query_kernel)
    dtype = query_part.dtype
    weights = query_kernel.astype(dtype), value_kernel.astype(dtype)
    classes = query_kernel.shape[-1]
    whole = [
        pl.BlockSpec(kernel.shape, lambda *_: (0, 0, 0)) for kernel in (query_kernel, value_kernel)
    ]
    gradients = pl.pallas_call(
        functools.partial(_backward_kernel, plan),
        grid=(tiles, head_num),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            _part_spec(query_part),
            _part_spec(value_part),
            *(_kernel_spec(kernel) for kernel in weights),
            *(_block_spec(x) for x in kept),
            pl.BlockSpec((1, plan.images, classes), lambda tile, _: (tile, 0, 0)),
        ],
        out_specs=[_part_spec(query_part), _part_spec(value_part), *whole],
        out_shape=[
            jax.ShapeDtypeStruct(query_part.shape, dtype),
            jax.ShapeDtypeStruct(value_part.shape, dtype),
            jax.ShapeDtypeStruct(query_kernel.shape, jnp.float32),
            jax.ShapeDtypeStruct(value_kernel.shape, jnp.float32),
        ],
        scratch_shapes=[
            *(pltpu.VMEM((rows, part.shape[2]), dtype) for part in (query_part, value_part)),
            *(pltpu.VMEM(part.shape[2:], jnp.float32) for part in (query_part, value_part)),
            *[pltpu.VMEM((rows, plan.chunk), jnp.float32)] * 2,
            *[pltpu.VMEM((rows, plan.chunk), dtype)] * 2,
        ],
        compiler_params=compiler_params(plan),
        interpret=plan.interpret,
        name="noah_head_backward",
    )(seeds, query_part, value_part, *weights, *kept, cotangent)
    to_query, to_value = (
        gradient.astype(kernel.dtype)
        for gradient, kernel in zip(gradients[2:], (query_kernel, value_kernel), strict=True)
    )
    return *gradients[:2], to_query, to_value


def compiler_params(plan: Plan) -> pltpu.CompilerParams:
    """For both kernels."""
    return pltpu.CompilerParams(vmem_limit_bytes=plan.vmem)


def _part_spec(part):
    """Tile and group; one group serves all blocks."""
    _, groups, channels, rows = part.shape
    return pl.BlockSpec(
        (1, 1, channels, rows), lambda tile, block: (tile, block if groups > 1 else 0, 0, 0)
    )


def _kernel_spec(kernel):
    return pl.BlockSpec((1, *kernel.shape[1:]), lambda _, block: (block, 0, 0))


def _block_spec(x):
    return pl.BlockSpec((1, 1, *x.shape[2:]), lambda tile, block: (tile, block, 0, 0))


def _forward_kernel(
    plan, seeds, query_part, value_part, query_kernel, value_kernel,
    logits, log_sums, outs, query_rows, value_rows, scores, values,
):  # fmt: skip
    query_rows[...] = query_part[0, 0].T
    value_rows[...] = value_part[0, 0].T
    tile, block = pl.program_id(0), pl.program_id(1)

    @pl.when(block == 0)
    def _():
        logits[...] = jnp.zeros(logits.shape, logits.dtype)

    attend(
        plan, 0, (query_rows, value_rows), (query_kernel, value_kernel), (scores, values),
        (logits, log_sums, outs), functools.partial(_keep, plan, seeds, tile, block),
    )  # fmt: skip


def attend(plan, block, rows, kernels, scratch, outputs, keep_of=lambda *_: _keep_all):
    """Adds a block's logits, in a kernel.

    Args:
      plan: of the kernel.
      block: which block of `kernels` and `outputs`.
      rows: query and value channels of the block, `[rows, channels]`.
      kernels: of query and value, `[blocks, channels, classes]`.
      scratch: for scores and values, `[rows, chunk]`.
      outputs: logits `[1, images, classes]`, which are added to; log-sum-exp and output of the
        block, `[1, blocks, images, classes]`.
      keep_of: what gives the dropout of some images and classes; see `_keep`; none by default.
    """
    (query_rows, value_rows), (query_kernel, value_kernel), (scores, values) = (
        rows,
        kernels,
        scratch,
    )
    logits, log_sums, outs = outputs

    def chunk(index, _):
        classes = _slice(index, plan.chunk)
        scores[...] = _dot(plan, query_rows[...], query_kernel[block, :, classes])
        values[...] = _dot(plan, value_rows[...], value_kernel[block, :, classes])

        def group(index, _):
            images = _slice(index, IMAGES)
            shape = (IMAGES, plan.chunk)
            keep = keep_of(images, classes)

            def peak(position, largest):
                return jnp.maximum(largest, scores[_rows(plan, position, images)])

            largest = _for_positions(plan, peak, jnp.full(shape, -jnp.inf, jnp.float32))

            def add(position, sums):
                total, out = sums
                rows = _rows(plan, position, images)
                weights = jnp.exp(scores[rows] - largest)
                return total + weights, out + weights * keep(position, values[rows])

            zeros = jnp.zeros(shape, jnp.float32)
            total, out = _for_positions(plan, add, (zeros, zeros))
            out = out / total
            logits[0, images, classes] += out
            log_sums[0, block, images, classes] = largest + jnp.log(total)
            outs[0, block, images, classes] = out
            return 0

        return jax.lax.fori_loop(0, plan.groups_of_images, group, 0)

    jax.lax.fori_loop(0, query_kernel.shape[2] // plan.chunk, chunk, 0)


def _backward_kernel(
    plan, seeds, query_part, value_part, query_kernel, value_kernel, log_sums, outs, cotangent,
    to_query_part, to_value_part, to_query_kernel, to_value_kernel,
    query_rows, value_rows, query_sum, value_sum, scores, values, to_scores, to_values,
):  # fmt: skip
    query_rows[...] = query_part[0, 0].T
    value_rows[...] = value_part[0, 0].T
    tile, block = pl.program_id(0), pl.program_id(1)

    @pl.when((tile == 0) & (block == 0))
    def _():
        to_query_kernel[...] = jnp.zeros(to_query_kernel.shape, jnp.float32)
        to_value_kernel[...] = jnp.zeros(to_value_kernel.shape, jnp.float32)
        # The rows that fill a tile are never written again.
        to_scores[...] = jnp.zeros(to_scores.shape, to_scores.dtype)
        to_values[...] = jnp.zeros(to_values.shape, to_values.dtype)

    # One group of channels collects the gradients of all blocks.
    @pl.when((block == 0) | (plan.groups > 1))
    def _():
        query_sum[...] = jnp.zeros(query_sum.shape, jnp.float32)
        value_sum[...] = jnp.zeros(value_sum.shape, jnp.float32)

    differentiate(
        plan, 0, (query_rows, value_rows), (query_part.at[0, 0], value_part.at[0, 0]),
        (query_kernel, value_kernel), (scores, values, to_scores, to_values),
        (log_sums, outs, cotangent), (query_sum, value_sum),
        (to_query_kernel.at[block], to_value_kernel.at[block]),
        functools.partial(_keep, plan, seeds, tile, block),
    )  # fmt: skip
    to_query_part[0, 0] = query_sum[...].astype(to_query_part.dtype)
    to_value_part[0, 0] = value_sum[...].astype(to_value_part.dtype)


def differentiate(
    plan,
    block,
    rows,
    columns,
    kernels,
    scratch,
    kept,
    to_columns,
    to_kernels,
    keep_of=lambda *_: _keep_all,
):
    """Adds the gradients of a block's features and weights, in a kernel.

    Args:
      plan: of the kernel.
      block: which block of `kernels` and `kept`.
      rows: query and value channels of the block, `[rows, channels]`.
      columns: the same, transposed.
      kernels: of query and value, `[blocks, channels, classes]`.
      scratch: for scores, values and their gradients, `[rows, chunk]`.
      kept: log-sum-exp and output of the blocks, `[1, blocks, images, classes]`, and the logits'
        cotangent, `[1, images, classes]`.
      to_columns: gradients of `columns`, which are added to.
      to_kernels: gradients of the block's weights, `[channels, classes]`, which are added to.
      keep_of: what gives the dropout of some images and classes; see `_keep`; none by default.
    """
    (query_rows, value_rows), (query_columns, value_columns) = rows, columns
    (query_kernel, value_kernel), (scores, values, to_scores, to_values) = kernels, scratch
    log_sums, outs, cotangent = kept
    (query_sum, value_sum), (to_query_kernel, to_value_kernel) = to_columns, to_kernels

    def chunk(index, _):
        classes = _slice(index, plan.chunk)
        query_weights = query_kernel[block, :, classes]
        value_weights = value_kernel[block, :, classes]
        scores[...] = _dot(plan, query_rows[...], query_weights)
        values[...] = _dot(plan, value_rows[...], value_weights)

        def group(index, _):
            images = _slice(index, IMAGES)
            keep = keep_of(images, classes)
            log_sum = log_sums[0, block, images, classes]
            out = outs[0, block, images, classes]
            scale = cotangent[0, images, classes]

            def write(position, _):
                rows = _rows(plan, position, images)
                to_value = jnp.exp(scores[rows] - log_sum) * scale
                to_score = to_value * (keep(position, values[rows]) - out)
                to_scores[rows] = to_score.astype(to_scores.dtype)
                to_values[rows] = keep(position, to_value).astype(to_values.dtype)
                return 0

            _for_positions(plan, write, 0)
            return 0

        jax.lax.fori_loop(0, plan.groups_of_images, group, 0)
        to_query_kernel[:, classes] += _dot(plan, query_columns[...], to_scores[...])
        to_value_kernel[:, classes] += _dot(plan, value_columns[...], to_values[...])
        query_sum[...] += _dot(plan, query_weights, to_scores[...], transposed=True)
        value_sum[...] += _dot(plan, value_weights, to_values[...], transposed=True)
        return 0

    jax.lax.fori_loop(0, query_kernel.shape[2] // plan.chunk, chunk, 0)


def _slice(index, size):
    return pl.ds(pl.multiple_of(index * size, size), size)


def _rows(plan, position, images):
    """Where the scores of one position and a group of images lie."""
    start = pl.multiple_of(position * plan.images + images.start, IMAGES)
    return pl.ds(start, IMAGES), slice(None)


def _for_positions(plan, body, carry):
    return jax.lax.fori_loop(0, plan.positions, body, carry, unroll=plan.unroll)


def _dot(plan, left, right, *, transposed=False):
    """A wide product; `transposed`: of `left` and `right`'s transpose."""
    contracting = ((1,), (1 if transposed else 0,))
    if plan.interpret:  # XLA's CPU backend does not know bfloat16 products with a wide result
        left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        left,
        right,
        (contracting, ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )


def _keep(plan, seeds, tile, block, images, classes):
    """`(position, x) -> x` with dropout, for `x` of a group of images and a chunk of classes."""
    if not plan.rate:
        return _keep_all
    shape = (IMAGES, plan.chunk)
    image = seeds[2] + tile * plan.images + images.start
    rows = dropouts.row_seed(
        (seeds[0], seeds[1]),
        image + jax.lax.broadcasted_iota(jnp.int32, shape, 0),
        block,
        classes.start + jax.lax.broadcasted_iota(jnp.int32, shape, 1),
    )
    return lambda position, x: jnp.where(
        dropouts.kept(rows, position, plan.rate), x / (1 - plan.rate), 0.0
    )


def _keep_all(_, x):
    return x
