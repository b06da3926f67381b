"""What a head looks at for chosen classes, and what every position adds to their logits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from noah_jax.errors import InputError


class Contributions(NamedTuple):
    """What the logits of chosen classes are made of; float32.

    `contributions` summed over blocks and positions, plus `bias` summed over blocks, are the
    logits. The bias belongs to no position.

    Attributes:
      attention: `[batch, blocks, m, *spatial]`; sums to one over the spatial dimensions.
      contributions: `[batch, blocks, m, *spatial]`.
      bias: `[batch, blocks, m]`.
    """

    attention: jax.Array
    contributions: jax.Array
    bias: jax.Array


def check_classes(classes: jax.Array, num_classes: int, features: jax.Array) -> jax.Array:
    """Returns class indices as an array.

    Args:
      classes: Class indices, `[m]` for the same classes in every image or `[batch, m]`.
      num_classes: How many classes there are.
      features: `[batch, *spatial, channels]`.

    Raises:
      InputError: If they have another shape or kind, or a concrete one is out of range.
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
