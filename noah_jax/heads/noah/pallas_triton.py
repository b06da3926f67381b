"""The one door to Pallas's Triton backend, which JAX deprecates since 0.11 and is going to remove.

Everything that the GPU kernels need of it is here, and it is imported when a kernel is planned.
Where it is gone or refuses to lower a kernel, `check` says so before anybody depends on it.
`docs/gpu.md` tells which ways lead on.
"""

import concurrent.futures
import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from noah_jax.errors import InputError, one_line
from noah_jax.heads.noah.kernels import call_kernel

_MODULE = "jax.experimental.pallas.triton"
_SIDE = 16  # of the matrices of the trial
_LONGEST_REASON = 160  # characters


class TritonError(InputError):
    """Raised if this JAX cannot compile Pallas kernels by Triton.

    Attributes:
      missing: Whether the backend is not there at all.
    """

    def __init__(self, text: str, *, missing: bool):
        super().__init__(text)
        self.missing = missing


def check(*, interpret: bool) -> None:
    """Checks that the backend is there and, once for each kind of device, that it lowers a kernel.

    Args:
      interpret: Whether the kernels are emulated, which takes no lowering for CUDA.

    Raises:
      TritonError: If the backend is missing or refuses; says why.
    """
    try:
        backend = _backend()
    except Exception as error:  # whatever a later JAX may raise
        raise _unusable(error, missing=True) from None
    device = jax.sharding.get_abstract_mesh().abstract_device
    reason = None if interpret else _refusal(backend, device)
    if reason:
        raise _unusable(reason, missing=False)


def _unusable(reason: object, *, missing: bool) -> TritonError:
    return TritonError(
        f"{_MODULE} of JAX {jax.__version__} cannot compile it"
        f" ({one_line(reason, _LONGEST_REASON)})",
        missing=missing,
    )


def load(ref: Any, *, mask: jax.Array, other: Any) -> jax.Array:
    """Loads what the mask allows, and `other` elsewhere."""
    return _backend().load(ref, mask=mask, other=other)


def store(ref: Any, x: jax.Array, *, mask: jax.Array) -> None:
    """Stores what the mask allows."""
    _backend().store(ref, x, mask=mask)


def call(
    kernel: Callable[..., None],
    *inputs: Any,
    name: str,
    grid: tuple[int, ...],
    out_shape: Any,
    warps: int,
    stages: int = 2,
    interpret: bool = False,
) -> Any:
    """Runs a kernel on whole arrays; each program takes what its place in the grid needs.

    Args:
      kernel: Called with references to the inputs and outputs.
      *inputs: Trees of arrays.
      name: Name of the kernel in profiles.
      grid: Numbers of programs.
      out_shape: Tree of the outputs' shapes.
      warps: Warps of a program.
      stages: Stages of the pipeline in which the compiler lays loops.
      interpret: Whether Pallas emulates the kernel.
    """
    (outputs,) = call_kernel(
        kernel,
        inputs,
        grid=grid,
        out_shape=(out_shape,),
        compiler_params=_backend().CompilerParams(num_warps=warps, num_stages=stages),
        interpret=interpret,
        name=name,
    )
    return outputs


def _backend() -> Any:
    # JAX warns when it imports the module and when it lowers a kernel, which is long after `call`.
    # Users can do nothing about it.
    warnings.filterwarnings("ignore", "The Pallas Triton backend", DeprecationWarning)
    return importlib.import_module(_MODULE)


@functools.cache
def _refusal(backend: Any, device: Any) -> str:
    """Returns why a kernel cannot be lowered for CUDA, or nothing."""
    del backend  # with another module the answer may be another

    def kernel(x_ref: Any, out_ref: Any) -> None:
        side = jnp.arange(_SIDE)
        window, mask = (side[:, None], side[None]), (side[:, None] < _SIDE) & (side[None] < _SIDE)
        x = load(x_ref.at[window], mask=mask, other=0.0)
        product = jax.lax.dot(x, x, preferred_element_type=jnp.float32)
        store(out_ref.at[window], product, mask=mask)

    def run(x: jax.Array) -> jax.Array:
        out_shape = jax.ShapeDtypeStruct(x.shape, jnp.float32)
        return call(kernel, x, name="noah_head_trial", grid=(1,), out_shape=out_shape, warps=4)

    def lower() -> str:
        mesh = AbstractMesh((1,), ("data",), (AxisType.Auto,), abstract_device=device)
        x = jax.ShapeDtypeStruct((_SIDE, _SIDE), jnp.bfloat16)
        try:
            with jax.sharding.use_abstract_mesh(mesh):
                jax.jit(run).trace(x).lower(lowering_platforms=("cuda",))
        except Exception as error:  # likewise
            return one_line(error)
        return ""

    # A thread of its own is outside the caller's mesh and transformations.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(lower).result()
