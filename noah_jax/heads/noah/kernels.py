"""What the Pallas kernels for TPUs and GPUs share."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from noah_jax.errors import InputError
from noah_jax.heads.noah.operands import Operands, PocaShape
from noah_jax.nn.dropout import Seeds, kept
from noah_jax.nn.mesh_axes import vary_over, varying_axes
from noah_jax.nn.per_device import on_each_device, shards_of_batch

# Dtypes of the features that the kernels of a backend take.
_DTYPES = {"tpu": ("bfloat16", "float32"), "gpu": ("bfloat16", "float16", "float32")}
# How the names of devices begin that no kernel of a backend has to be traced for.
_OTHER_KIND = {"tpu": "nvidia", "gpu": "tpu"}

Ref: TypeAlias = Any  # a Pallas reference; JAX has no public type for it


class Pair(NamedTuple):
    """Two arrays, or two Pallas references, of the same kind.

    Attributes:
      query: The one for the query.
      value: The one for the value.
    """

    query: Any
    value: Any

    def map(self, f: Callable, *others: "Pair") -> "Pair":
        """Calls `f` on both, with those of the other pairs beside them."""
        return Pair(*(f(*pair) for pair in zip(self, *others, strict=True)))


def images_per_device(
    shape: PocaShape, *, backend: str, interpret: bool, devices: int | None = None
) -> int:
    """Computes how many images each device has.

    Args:
      shape: Shape of the head.
      backend: Name of the kernel's backend in `jax.default_backend()`: "tpu" or "gpu".
      interpret: Whether the kernel is emulated.
      devices: Number of devices the batch is split over; by default as `split_over_devices`
        splits it.

    Raises:
      InputError: If the mesh has devices of another kind, nothing says over which devices the batch
        is split, it does not divide among them, its size is symbolic, or the backend's kernels do
        not take the dtype.
    """
    if not isinstance(shape.batch, int):
        raise InputError(f"kernels take a known number of images, got {shape.batch}")
    device = jax.sharding.get_abstract_mesh().abstract_device
    if not interpret and device and device.device_kind.lower().startswith(_OTHER_KIND[backend]):
        raise InputError(f"the mesh's devices are of another kind: {device.device_kind}")
    if devices is None:
        devices = _device_count(backend, interpret)
    if devices is None:
        raise InputError(
            "a kernel needs to know the devices the batch is split over: use jax.set_mesh, or"
            f" jax.shard_map over all axes, or run on a single {backend.upper()}"
        )
    if shape.batch % devices:
        raise InputError(f"{shape.batch} images do not divide among {devices} devices")
    dtypes = _DTYPES[backend]
    if shape.dtype.name not in dtypes:
        raise InputError(
            f"the kernels for {backend.upper()}s take {' or '.join(dtypes)} features,"
            f" got {shape.dtype}"
        )
    if jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise InputError("kernels do not run where jax_enable_x64 is set")
    return shape.batch // devices


def _device_count(backend: str, interpret: bool) -> int | None:
    """Counts the devices that the batch is split over; `None` if nothing tells."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.auto_axes or mesh.explicit_axes:
        return None if mesh.manual_axes else shards_of_batch()
    alone = jax.default_backend() == backend and jax.device_count() == 1
    return 1 if mesh.manual_axes or interpret or alone else None


def split_over_devices(
    compute: Callable[..., jax.Array], plan: Any, operands: Operands, seeds: Seeds | None
) -> jax.Array:
    """Runs `compute(plan, operands, seeds)` on each device's part of the batch.

    The compiler cannot partition a kernel by itself.
    """

    def specs(axes: tuple[str, ...]) -> tuple:
        part: Any = jax.P(None, axes)
        whole: Any = jax.P()
        of_operands = Operands(part, part, whole, whole, whole)
        images: Any = jax.P(axes)
        return of_operands, None if seeds is None else Seeds(whole, images)

    return on_each_device(functools.partial(compute, plan), specs, operands, seeds)


def batch_specs(axes: tuple[str, ...]) -> tuple:
    """Splits features over devices by the batch, and nothing of the `Weights` after them."""
    return jax.P(axes), *[jax.P()] * 3


def call_kernel(kernel: Callable, inputs: tuple, **options: Any) -> Any:
    """Runs a kernel, also inside a `jax.shard_map` that checks its types.

    Args:
      kernel: The kernel.
      inputs: Its arrays.
      **options: The other arguments of `pl.pallas_call`.
    """
    run = pl.pallas_call(kernel, **options)
    axes = varying_axes(inputs)
    if not axes:
        return run(*inputs)

    # Pallas cannot check these types where it emulates a kernel. No gradient is taken through
    # this call, so the results' types can be stated afterwards.
    def unchecked(*inputs: Any) -> Any:
        # Arguments keep the types that they have outside. Results of operations have none.
        untyped = jax.tree.map(lambda x: jax.lax.bitcast_convert_type(x, x.dtype), inputs)
        return run(*untyped)

    outputs = jax.shard_map(unchecked, in_specs=jax.P(), out_specs=jax.P(), check_vma=False)(
        *inputs
    )
    return vary_over(axes, outputs)


def differentiable(
    forward: Callable[..., tuple], backward: Callable[..., tuple], *, static: tuple[int, ...] = (0,)
) -> Callable:
    """Makes a function of its two passes.

    Args:
      forward: Returns the result and what `backward` needs.
      backward: Called with the static arguments, what forward kept, and the cotangent.
      static: Which of the arguments are not arrays.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=static)
    def f(*arguments: Any) -> Any:
        return forward(*arguments)[0]

    f.defvjp(forward, backward)
    return f


def differentiated_once(f: Callable, *, static: tuple[int, ...] = (0,)) -> Callable:
    """Makes `f` refuse to be differentiated, which would fail deep inside JAX.

    Args:
      f: Function that calls a kernel.
      static: Which of its arguments are not arrays.
    """

    def refuse(*_: Any) -> Any:
        raise NotImplementedError(
            "the kernel of the NOAH head has no second derivatives; pass implementation='xla'"
        )

    f = jax.custom_vjp(f, nondiff_argnums=static)
    f.defvjp(refuse, refuse)
    return f


def append_bias_channel(operands: Operands) -> Operands:
    """Makes the value's bias one more channel of its kernel, whose features are ones.

    Dropout falls on values with their bias, so the bias must take part in the product.
    """
    ones = jnp.ones_like(operands.value_part[..., :1])
    return operands._replace(
        value_part=jnp.concatenate([operands.value_part, ones], -1),
        value_kernel=jnp.concatenate([operands.value_kernel, operands.value_bias[:, None]], 1),
    )


def cast(pair: Pair, dtype: Any) -> Pair:
    """Casts both arrays."""
    return pair.map(lambda x: x.astype(dtype))


def cast_like(pair: Pair, other: Pair) -> Pair:
    """Casts both arrays to the dtypes of the other pair's."""
    return pair.map(lambda x, like: x.astype(like.dtype), other)


def drop(x: jax.Array, row_seeds: jax.Array, position: jax.Array, rate: float) -> jax.Array:
    """Applies dropout to `x`, inside a kernel.

    Args:
      x: Values, or their gradients.
      row_seeds: Seeds of the masks for images, blocks and classes, by `row_seed`.
      position: Position in the feature map.
      rate: Dropout rate.
    """
    return jnp.where(kept(row_seeds, position, rate), x / (1 - rate), 0.0)


def wide_dot(
    left: jax.Array,
    right: jax.Array,
    contracting: tuple[int, int],
    *,
    interpret: bool,
    exact: bool = True,
) -> jax.Array:
    """Multiplies two matrices to a float32 result, inside a kernel.

    Args:
      left: A matrix.
      right: A matrix of the same dtype.
      contracting: The axis of each that is summed over.
      interpret: Whether the kernel is emulated.
      exact: Whether float32 products are float32's; else TPUs round them to bfloat16, and NVIDIA
        GPUs to TF32.
    """
    if interpret:  # XLA's CPU backend does not know bfloat16 products with a float32 result
        left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    return jax.lax.dot_general(
        left,
        right,
        (([contracting[0]], [contracting[1]]), ((), ())),
        precision=jax.lax.Precision.HIGHEST if exact and left.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )


def ceil_div(n: int, divisor: int) -> int:
    """Divides and rounds up."""
    return -(-n // divisor)


def round_up(n: int, multiple: int) -> int:
    """Rounds `n` up to a multiple."""
    return ceil_div(n, multiple) * multiple
