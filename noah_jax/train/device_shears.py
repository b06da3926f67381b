"""Moves the pixels of an image by an affine matrix without a gather, for TPUs.

A gather of single pixels is slow on a TPU, and a shift of whole rows or columns is not. A shear
along an axis shifts every row by its own whole number of pixels and interpolates with weights that
a row shares. A rotation is three such shifts, along x, y and x again (Paeth, 1986), that are
rounded to whole pixels: no pixel is mixed or lost, and each comes to lie within about one pixel of
its place. The interpolation then reads a window round each pixel and weighs what it finds by where
that came from. So the result is the sum that `Image.transform` computes, in another order.

Images are int32 `[height, width]` with three channels of eight bits, see `pack`.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from noah_jax.data.randaugment import MAX_DEGREES, MAX_SHEAR

# Levels are cut to whole ones, which float32 can miss from below: by a little where two or four are
# interpolated, and by ten times as much where a rotation weighs a window.
_TINY = 1e-4
_REACH = {False: 1, True: 2}  # pixels on each side that are interpolated, without and with cubics
# Neighbours that are weighed at once. XLA would compute their weights anew for each channel if
# nothing kept it from that, and in larger groups it goes through the image once for each channel.
_GROUP = 7
_MAX_ALONG_X = math.tan(math.radians(MAX_DEGREES / 2))
_MAX_ALONG_Y = math.sin(math.radians(MAX_DEGREES))

Affine = tuple[jax.Array, ...]  # `(a, b, c, d, e, f)`, float32 scalars; see `affine_matrix`
Levels = tuple[jax.Array, jax.Array, jax.Array]  # float32 levels of the three channels


def pack(red: jax.Array, green: jax.Array, blue: jax.Array) -> jax.Array:
    """Packs the levels of three channels into one int32 for each pixel."""
    return red | green << 8 | blue << 16


def channels(packed: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the levels of the three channels."""
    return packed & 255, packed >> 8 & 255, packed >> 16


def shifted(pixels: jax.Array, by: int, axis: int) -> jax.Array:
    """Returns `pixels[i + by]` along an axis, zeros from beyond the end."""
    padding = [(0, 0, 0)] * pixels.ndim
    padding[axis] = (-by, by, 0)
    return jax.lax.pad(pixels, jnp.zeros((), pixels.dtype), padding)


def pulled(pixels: jax.Array, shifts: jax.Array, axis: int, largest: int) -> jax.Array:
    """Returns `pixels[i + shifts]` along an axis, zeros from beyond the end.

    Args:
      pixels: The pixels.
      shifts: int32 shifts of 0 to `largest`, of size 1 along the axis.
      axis: The axis.
      largest: The largest shift.
    """
    # One shift for each pixel: XLA would compare those of the lines in an operation of its own.
    shifts = jax.lax.optimization_barrier(jnp.broadcast_to(shifts, pixels.shape))
    for bits in range(0, largest.bit_length(), 2):  # a digit of the shifts in base 4 in each round
        digit, step = shifts >> bits & 3, 1 << bits
        moves = [(i, shifted(pixels, i * step, axis)) for i in (1, 2, 3) if i * step <= largest]
        for i, moved in moves:
            pixels = jnp.where(digit == i, moved, pixels)
    return pixels


def sheared(
    packed: jax.Array, matrix: Affine, axis: int, cubic: jax.Array, *, bicubic: bool
) -> Levels:
    """Moves an image along one axis, by a shear or a translation.

    Args:
      packed: The image.
      matrix: Where a pixel comes from; along the other axis it stays where it is.
      axis: 1 for a move along x, 0 along y.
      cubic: Whether this image interpolates bicubically.
      bicubic: Whether any image does.

    Returns:
      The levels of the three channels, not cut to whole ones yet.
    """
    size, lines = packed.shape[axis], packed.shape[1 - axis]
    _, b, c, d, _, f = matrix
    slope, start = (b, c) if axis == 1 else (d, f)
    place = jnp.expand_dims(slope * (jnp.arange(lines, dtype=jnp.float32) + 0.5) + start, axis)
    before = jnp.floor(place)
    # All lines shift by `base`, as far as there are pixels, and each by a little more.
    far = size + 4
    base = jnp.clip(before.min().astype(jnp.int32), -far, far)
    more = jnp.maximum(before.astype(jnp.int32) - base, 0)
    most = math.ceil(MAX_SHEAR * lines) + 1
    reach = _REACH[bicubic]
    padded = _pad(_pad(packed, axis, reach, reach, edge=True), axis, far, far + most)
    moved = jax.lax.dynamic_slice_in_dim(padded, base + far, size + 2 * reach + most, axis)
    moved = pulled(moved, more, axis, most)
    taps = [
        channels(jax.lax.slice_in_dim(moved, start, start + size, axis=axis))
        for start in range(1, 1 + 2 * reach)
    ]
    red, green, blue = (
        interpolated([x.astype(jnp.float32) for x in channel], place - before, cubic) + _TINY
        for channel in zip(*taps, strict=True)
    )
    return red, green, blue


def rotated(packed: jax.Array, matrix: Affine, cubic: jax.Array, *, bicubic: bool) -> Levels:
    """Moves an image by a rotation of at most 30 degrees, and any translation of the result.

    Args:
      packed: The image.
      matrix: Where a pixel comes from.
      cubic: Whether this image interpolates bicubically.
      bicubic: Whether any image does.

    Returns:
      The levels of the three channels, not cut to whole ones yet.
    """
    height, width = packed.shape
    a, b, c, d, e, f = matrix
    offsets = _window(bicubic)
    reach = _REACH[bicubic]
    beyond_y, beyond_x = (max(abs(offset[i]) for offset in offsets) for i in (0, 1))

    # ---- The matrix is a shear along x, one along y, and the one along x again, round the centre.
    along_x, along_y = -d / (1 + a), d
    centre_x = a * width / 2 + b * height / 2 + c - width / 2
    centre_y = d * width / 2 + e * height / 2 + f - height / 2

    def first(y: jax.Array) -> jax.Array:
        return _rounded(along_x * (y + 0.5 - height / 2) + centre_x)

    def second(x: jax.Array) -> jax.Array:
        return _rounded(along_y * (x + 0.5 - width / 2) + centre_y)

    def third(y: jax.Array) -> jax.Array:
        return _rounded(along_x * (y + 0.5 - height / 2))

    most_x = math.ceil(_MAX_ALONG_X * (height / 2 + beyond_y)) + 1
    most_y = math.ceil(_MAX_ALONG_Y * (width / 2 + beyond_x + most_x)) + 1

    # ---- Every pixel goes to within about a pixel of its place, in three moves of whole lines.
    def coordinates(size: int, beyond: int) -> jax.Array:
        return jnp.arange(-beyond, size + beyond)

    moved = _pad(_pad(packed, 1, reach, reach, edge=True), 0, reach, reach, edge=True)
    middle = beyond_x + most_x  # columns on each side that the first two moves need
    moved = _pad(moved, 1, middle + most_x - reach, middle + most_x - reach)
    y = coordinates(height, reach)[:, None]
    moved = pulled(moved, first(y) + most_x, 1, 2 * most_x)[:, : width + 2 * middle]
    moved = _pad(moved, 0, beyond_y + most_y - reach, beyond_y + most_y - reach)
    x = coordinates(width, middle)[None]
    moved = pulled(moved, second(x) + most_y, 0, 2 * most_y)[: height + 2 * beyond_y]
    y = coordinates(height, beyond_y)[:, None]
    moved = pulled(moved, third(y) + most_x, 1, 2 * most_x)[:, : width + 2 * beyond_x]

    # ---- Each pixel is the sum of those round it, weighed by where they came from.
    y, x = coordinates(height, 0)[:, None], coordinates(width, 0)[None]
    place_x = a * (x + 0.5) + b * (y + 0.5) + (c - 0.5)
    place_y = d * (x + 0.5) + e * (y + 0.5) + (f - 0.5)
    total = [jnp.zeros((height, width), jnp.float32)] * 3
    for first_of_group in range(0, len(offsets), _GROUP):
        group = offsets[first_of_group : first_of_group + _GROUP]
        pixels, weights = [], []
        for down, right in group:
            top, left = beyond_y + down, beyond_x + right
            pixels.append(moved[top : top + height, left : left + width])
            x_then = x + right + third(y + down)
            from_y = y + down + second(x_then)
            from_x = x_then + first(from_y)
            weight = _weight(from_x - place_x, cubic, bicubic=bicubic)
            weights.append(weight * _weight(from_y - place_y, cubic, bicubic=bicubic))
        pixels, weights = jax.lax.optimization_barrier((pixels, weights))
        for weight, levels in zip(weights, map(channels, pixels), strict=True):
            total = [t + weight * x.astype(jnp.float32) for t, x in zip(total, levels, strict=True)]
        total = jax.lax.optimization_barrier(total)
    red, green, blue = (sum_ + 10 * _TINY for sum_ in total)
    return red, green, blue


def _weight(distance: jax.Array, cubic: jax.Array, *, bicubic: bool) -> jax.Array:
    """Returns Pillow's weight of a pixel at this distance along an axis."""
    t = jnp.abs(distance)
    linear = jnp.maximum(1 - t, 0)
    if not bicubic:
        return linear
    t = jnp.minimum(t, 2)
    near, far = 1 + t * t * (t - 2), 4 + t * (-8 + t * (5 - t))
    return jnp.where(cubic > 0, jnp.where(t < 1, near, far), linear)


@functools.cache
def _window(bicubic: bool) -> list[tuple[int, int]]:
    """Returns `(down, right)` from a pixel to all that can count for it, at any angle."""
    offsets = set()
    steps = range(-6, 7)
    for angle in np.radians(np.linspace(-MAX_DEGREES, MAX_DEGREES, 241)):
        cos, sin = math.cos(angle), math.sin(angle)
        # Each of the three moves rounds by up to half a pixel, which the next one carries on.
        off_y = 0.5 + abs(sin) / 2
        off_x = 1 + abs(math.tan(angle / 2)) * off_y
        reach = _REACH[bicubic] + 1e-3
        offsets |= {
            (down, right)
            for down in steps
            for right in steps
            if abs(cos * right - sin * down) < reach + off_x
            and abs(sin * right + cos * down) < reach + off_y
        }
    return sorted(offsets)


def interpolated(levels: Sequence[jax.Array], way: jax.Array, cubic: jax.Array) -> jax.Array:
    """Interpolates between two levels, or from four if `cubic`, in Pillow's order of terms.

    The order matters, because the result is cut to whole levels: equal levels must give
    themselves.

    Args:
      levels: float32 levels of two or four neighbours.
      way: How far the place is behind the first of two neighbours, or the second of four; 0..1.
      cubic: Above 0 to interpolate bicubically where there are four.
    """
    if len(levels) == 2:
        before, after = levels
        return before + (after - before) * way
    first, before, after, last = levels
    third = 2 * (first - before) + after - last
    fourth = -first + before - after + last
    curve = before + way * (after - first + way * (third + way * fourth))
    return jnp.where(cubic > 0, curve, before + (after - before) * way)


def _rounded(value: jax.Array) -> jax.Array:
    return jnp.floor(value + 0.5).astype(jnp.int32)


def _pad(pixels: jax.Array, axis: int, before: int, after: int, *, edge: bool = False) -> jax.Array:
    widths = [(0, 0), (0, 0)]
    widths[axis] = (before, after)
    return jnp.pad(pixels, widths, mode="edge") if edge else jnp.pad(pixels, widths)
