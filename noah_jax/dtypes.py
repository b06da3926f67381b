"""Which dtype sums, softmax and logits have."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

COMPUTE_DTYPES = ("float32", "bfloat16", "float16", "float64")


def wide_dtype(dtype: Any) -> np.dtype:
    """At least float32: what statistics, softmax, sums and logits are computed in.

    float64 stays, for those who want to tell rounding from a mistake.
    """
    return jnp.promote_types(dtype, jnp.float32)


def widen(x: jax.Array) -> jax.Array:
    """`x` in `wide_dtype` of its own."""
    return x.astype(wide_dtype(x.dtype))


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
        raise ValueError(f"dtype must be one of {', '.join(COMPUTE_DTYPES)}, got {dtype!r}")
    if name == "float64" and not jax.config.jax_enable_x64:
        raise ValueError("dtype='float64' needs JAX_ENABLE_X64=1 in the environment")
    return jnp.dtype(name)
