"""Chooses the dtype of sums, softmax and logits, and checks compute dtypes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from noah_jax.errors import InputError

COMPUTE_DTYPES = ("float32", "bfloat16", "float16", "float64")


def wide_dtype(dtype: Any) -> np.dtype:
    """Returns the dtype of statistics, softmax, sums and logits: at least float32.

    float64 stays float64, so that rounding can be told from a mistake.
    """
    return jnp.promote_types(dtype, jnp.float32)


def widen(x: jax.Array) -> jax.Array:
    """`x` in the `wide_dtype` of its own dtype."""
    return x.astype(wide_dtype(x.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def wide_einsum(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """Returns an einsum of two operands in the left one's dtype, with a result of at least float32.

    JAX's own gradient of a bfloat16 product with a float32 result multiplies float32 by
    bfloat16, which accelerators do several times slower. Here the cotangent is rounded to the
    compute dtype first. Gradients have the operands' own dtypes, so float32 weights get
    unrounded ones.

    Args:
      equation: Such as "bld,ndk->bnkl"; every index stands in two of the three terms.
      left: Activations, in the compute dtype.
      right: Activations or float32 weights.
    """
    right = right.astype(left.dtype)
    if wide_dtype(left.dtype) == left.dtype:
        return jnp.einsum(equation, left, right)

    def native(left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.einsum(equation, left, right, preferred_element_type=wide_dtype(left.dtype))

    def widened(left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.einsum(equation, widen(left), widen(right))

    # XLA's CPU backend lacks bfloat16 products with a float32 result. The numbers are the same.
    return jax.lax.platform_dependent(left, right, cpu=widened, default=native)


def _wide_einsum_forward(
    equation: str, left: jax.Array, right: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return wide_einsum(equation, left, right), (left, right)


def _wide_einsum_backward(
    equation: str, residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    left, right = residuals
    cotangent = cotangent.astype(left.dtype)
    operand_terms, out = equation.split("->")
    left_term, right_term = operand_terms.split(",")
    d_left = wide_einsum(f"{out},{right_term}->{left_term}", cotangent, right)
    d_right = wide_einsum(f"{out},{left_term}->{right_term}", cotangent, left)
    return d_left.astype(left.dtype), d_right.astype(right.dtype)


wide_einsum.defvjp(_wide_einsum_forward, _wide_einsum_backward)


def check_compute_dtype(dtype: Any) -> np.dtype:
    """Returns the dtype that a name or a type stands for.

    Raises:
      InputError: If models cannot compute in it.
    """
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = None
    if name not in COMPUTE_DTYPES:
        raise InputError(f"dtype must be one of {', '.join(COMPUTE_DTYPES)}, got {dtype!r}")
    if name == "float64" and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise InputError("dtype='float64' needs JAX_ENABLE_X64=1 in the environment")
    return jnp.dtype(name)
