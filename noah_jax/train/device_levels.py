"""The arithmetic of Pillow on levels of 0..255, for colour jitter and RandAugment on the device.

Levels are int32 arrays of any shape, an image's pixels in one channel or a table of all 256 levels.
Everything is bit-equal to Pillow's C code: integers, or float32 sums of exact products.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

LEVELS = np.arange(256, dtype=np.int32)
_GREY = (19595, 38470, 7471)  # of 65536: Pillow's luminance


def simple_levels(name: str, levels: jax.Array, argument: jax.Array) -> jax.Array:
    """Returns the new levels of an operation that looks at nothing but a level.

    Args:
      name: "invert", "posterize", "solarize", "solarize_add" or "brightness".
      levels: The levels.
      argument: The operation's parameter, a float32 scalar.
    """
    whole = argument.astype(jnp.int32)
    if name == "invert":
        return 255 - levels
    if name == "posterize":
        return levels & whole
    if name == "solarize":
        return jnp.where(whole > levels, levels, 255 - levels)
    if name == "solarize_add":
        return jnp.where(levels < 128, jnp.minimum(255, levels + whole), levels)
    return blended(jnp.zeros_like(levels), levels, argument)


SIMPLE = ("invert", "posterize", "solarize", "solarize_add", "brightness")


def blended(other: jax.Array, levels: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns `Image.blend(other, levels, factor)`, which rounds towards zero."""
    exact = factor * (levels - other).astype(jnp.float32)  # see `rounded_factor`
    return jnp.clip(other.astype(jnp.float32) + exact, 0, 255).astype(jnp.int32)


def grey(red: jax.Array, green: jax.Array, blue: jax.Array) -> jax.Array:
    """Returns Pillow's luminance."""
    return (red * _GREY[0] + green * _GREY[1] + blue * _GREY[2] + 0x8000) >> 16


def mean_level(levels: jax.Array) -> jax.Array:
    """Returns the mean, rounded half up."""
    return (2 * levels.sum() + levels.size) // (2 * levels.size)


def autocontrast(
    levels: jax.Array, low: jax.Array, high: jax.Array, lowered: jax.Array
) -> jax.Array:
    """Returns the new levels of `ImageOps.autocontrast`.

    Args:
      levels: The levels, from `low` to `high` where they count.
      low: Lowest level of the channel.
      high: Highest level of the channel.
      lowered: The row of `rounded_down` for these two, int32 `[n]`; -1 stands for no level.
    """
    stretched = jnp.clip((levels - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    is_lower = functools.reduce(jnp.logical_or, (levels == level for level in lowered))
    return jnp.where(high > low, stretched - is_lower, levels)


@functools.cache
def rounded_down() -> tuple[np.ndarray, np.ndarray]:
    """Finds where Pillow's float64 arithmetic gives one level less than the quotient.

    A lowest level `low`, a highest one `high`, and a level whose new one is a whole number that
    float64 just misses.

    Returns:
      int32 `256 * low + high`, rising, and for each such pair int32 levels, -1 where there are no
      more.
    """
    found: dict[int, list[int]] = {}
    for low in range(256):
        high = np.arange(low + 1, 256)[:, None]
        scale = 255.0 / (high - low)
        inexact = (LEVELS * scale + -low * scale).astype(np.int64)
        exact = (LEVELS - low) * 255 // (high - low)
        inside = (low <= LEVELS) & (high >= LEVELS)
        for i, level in zip(*np.nonzero((inexact != exact) & inside), strict=True):
            found.setdefault(256 * low + int(high[i, 0]), []).append(int(level))
    longest = max(map(len, found.values()))
    levels = [own + [-1] * (longest - len(own)) for own in found.values()]
    order = np.argsort(list(found))
    return np.array(list(found), np.int32)[order], np.array(levels, np.int32)[order]


def equalize_table(counts: jax.Array) -> jax.Array:
    """Returns the table of `ImageOps.equalize` for the counts of 256 levels."""
    highest = 255 - first_level(counts[::-1])
    step = (counts.sum() - counts[highest]) // 255
    before = jnp.cumsum(counts) - counts
    table = (before + step // 2) // jnp.maximum(step, 1)
    return jnp.where(step > 0, jnp.minimum(table, 255), LEVELS)


def first_level(counts: jax.Array) -> jax.Array:
    """Returns the lowest level that occurs."""
    return jnp.argmax(counts > 0)
