"""Which dtype sums, softmax and logits have."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from noah_jax.errors import InputError

COMPUTE_DTYPES = ("float32", "bfloat16", "float16", "float64")


def wide_dtype(dtype: Any) -> np.dtype:
    """At least float32: what statistics, softmax, sums and logits are computed in.

    float64 stays, for those who want to tell rounding from a mistake.
    """
    return jnp.promote_types(dtype, jnp.float32)


def widen(x: jax.Array) -> jax.Array:
    """`x` in `wide_dtype` of its own."""
    return x.astype(wide_dtype(x.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def wide_einsum(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """An einsum of two operands, computed in the left one's dtype, with a wide result.

    Without it the gradient of a bfloat16 product with a float32 result multiplies float32 by
    bfloat16, which accelerators do several times slower: here the cotangent is rounded to the
    compute dtype first. Gradients come in the operands' own dtypes, so float32 weights get
    theirs unrounded.

    Args:
      equation: such as "bld,ndk->bnkl"; every index stands in two of the three terms.
      left: activations, in the compute dtype.
      right: activations or float32 weights.
    """
    right = right.astype(left.dtype)
    if wide_dtype(left.dtype) == left.dtype:
        return jnp.einsum(equation, left, right)

    def native(left, right):
        return jnp.einsum(equation, left, right, preferred_element_type=wide_dtype(left.dtype))

    def widened(left, right):
        return jnp.einsum(equation, widen(left), widen(right))

    # XLA's CPU backend does not know bfloat16 products with a float32 result; the same numbers.
    return jax.lax.platform_dependent(left, right, cpu=widened, default=native)


def _wide_einsum_forward(equation, left, right):
    return wide_einsum(equation, left, right), (left, right)


def _wide_einsum_backward(equation, operands, cotangent):
    left, right = operands
    cotangent = cotangent.astype(left.dtype)
    operand_terms, out = equation.split("->")
    left_term, right_term = operand_terms.split(",")
    to_left = wide_einsum(f"{out},{right_term}->{left_term}", cotangent, right)
    to_right = wide_einsum(f"{out},{left_term}->{right_term}", cotangent, left)
    return to_left.astype(left.dtype), to_right.astype(right.dtype)


wide_einsum.defvjp(_wide_einsum_forward, _wide_einsum_backward)


def check_compute_dtype(dtype: Any) -> np.dtype:
    """The dtype of a name or a type.

    Raises:
      ValueError: if models cannot compute in it.
    """
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = None
    if name not in COMPUTE_DTYPES:
        raise InputError(f"dtype must be one of {', '.join(COMPUTE_DTYPES)}, got {dtype!r}")
    if name == "float64" and not jax.config.jax_enable_x64:
        raise InputError("dtype='float64' needs JAX_ENABLE_X64=1 in the environment")
    return jnp.dtype(name)
