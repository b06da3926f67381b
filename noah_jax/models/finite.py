"""Refuses weights that are not finite, whose predictions would be meaningless."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from noah_jax.errors import ReadError


def check_finite(weights: Mapping[str, np.ndarray | jax.Array], where: str) -> None:
    """Checks that weights have no NaN and no infinite value.

    Args:
      weights: Arrays by the names that messages give them.
      where: The folder or file that they come from.

    Raises:
      ReadError: If they have; names the first array and counts the values.
    """
    bad = {key: count for key, x in weights.items() if (count := _not_finite(np.asarray(x)))}
    if not bad:
        return
    key, count = next(iter(bad.items()))
    others = sum(bad.values()) - count
    more = f", and {others:,} value(s) of {len(bad) - 1} other(s)" if others else ""
    raise ReadError(
        f"{where}: {count:,} of {weights[key].size:,} value(s) of {key} are not finite (NaN or"
        f" infinite){more}; take an earlier checkpoint"
    )


def _not_finite(x: np.ndarray) -> int:
    """Counts the values that are not finite, without a copy of an array that has none."""
    if not x.size or not jnp.issubdtype(x.dtype, jnp.inexact):
        return 0
    with np.errstate(invalid="ignore"):
        if np.isfinite(x.min()) and np.isfinite(x.max()):
            return 0
    return x.size - int(np.isfinite(x).sum())
