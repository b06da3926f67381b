"""Checks the classes that a head is asked about."""

import jax
import jax.numpy as jnp
import numpy as np

from noah_jax.errors import InputError


def check_classes(classes: jax.Array, num_classes: int, features: jax.Array) -> jax.Array:
    """Returns class indices as an array.

    Args:
      classes: Class indices, `[m]` for the same classes in every image or `[batch, m]`.
      num_classes: How many classes there are.
      features: The images' features, `[batch, ...]`.

    Raises:
      InputError: If they are of another shape or kind, or a concrete one is out of range.
    """
    classes = jnp.asarray(classes)
    if classes.ndim not in (1, 2) or not jnp.issubdtype(classes.dtype, jnp.integer):
        raise InputError(
            "classes must be integers of shape [m] or [batch, m],"
            f" got {classes.dtype} of shape {classes.shape}"
        )
    if classes.ndim == 2 and classes.shape[0] != features.shape[0]:
        raise InputError(
            f"classes of shape {classes.shape} are for {classes.shape[0]} images,"
            f" the features hold {features.shape[0]}"
        )
    if not isinstance(classes, jax.core.Tracer) and classes.size:
        values = np.asarray(classes)  # JAX's own min and max would be traced under jit
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= num_classes:
            raise InputError(f"classes must lie in 0..{num_classes - 1}, got {low}..{high}")
    return classes
