"""Takes a kernel in programs that are compiled to run, and plain operations in exported ones.

JAX lowers no kernel for several platforms at once, and `jax.export` refuses Triton kernels, for
which it promises no compatibility. Only lowering knows whether a program is exported, so this is
one primitive that holds both forms.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir

_primitive = Primitive("noah_head_kernel_or_plain")
_primitive.multiple_results = True


def kernel_or_plain(kernel: Callable[..., Any], plain: Callable[..., Any], *arguments: Any) -> Any:
    """Computes one of two functions of the same arguments, with results of the same shapes.

    It cannot be differentiated.

    Args:
      kernel: Function that calls a kernel; computed unless the program is exported or lowered for
        several platforms.
      plain: The same in plain JAX.
      *arguments: Trees of arrays.
    """
    leaves, structure = jax.tree.flatten(arguments)

    def traced(f: Callable[..., Any]) -> tuple[Any, Any]:
        def flat(*leaves: jax.Array) -> Any:
            return f(*jax.tree.unflatten(structure, leaves))

        return jax.make_jaxpr(flat, return_shape=True)(*leaves)

    (kernel_jaxpr, result), (plain_jaxpr, _) = traced(kernel), traced(plain)
    results = _primitive.bind(*leaves, kernel=kernel_jaxpr, plain=plain_jaxpr)
    return jax.tree.unflatten(jax.tree.structure(result), results)


@_primitive.def_impl
def _compute(*leaves: jax.Array, kernel: Any, plain: Any) -> Any:
    del plain
    return jax.jit(jaxpr_as_fun(kernel))(*leaves)


@_primitive.def_abstract_eval
def _avals(*_: Any, kernel: Any, plain: Any) -> Any:
    del plain
    return kernel.out_avals


def _lower(ctx: mlir.LoweringRuleContext, *leaves: Any, kernel: Any, plain: Any) -> Any:
    module = ctx.module_context
    exported = module.lowering_parameters.for_export or len(module.platforms) > 1
    chosen = jaxpr_as_fun(plain if exported else kernel)
    return mlir.lower_fun(chosen, multiple_results=True)(ctx, *leaves)


def _batch(leaves: Any, axes: Any, *, kernel: Any, plain: Any) -> Any:
    def batched(jaxpr: Any) -> Any:
        return jax.make_jaxpr(jax.vmap(jaxpr_as_fun(jaxpr), in_axes=axes))(*leaves)

    results = _primitive.bind(*leaves, kernel=batched(kernel), plain=batched(plain))
    return results, [0] * len(results)


mlir.register_lowering(_primitive, _lower)
batching.primitive_batchers[_primitive] = _batch
