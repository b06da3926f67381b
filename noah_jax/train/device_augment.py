"""Applies colour jitter and RandAugment on the device, batched, to what the host drew.

An image has one row of numbers for each operation, see `noah_jax.data.device_draws`. All images of
a batch go through the same three stages for each row, and an operation is the identity in the
stages that are not its own: a table of 256 levels a channel, a blend with the image's grey or
smoothed version, and an affine movement of the pixels.

The first two give Pillow's pixels bit by bit: their arithmetic is that of Pillow's C code in
integers, or in float32 sums of exact products. Moved pixels differ from Pillow's by float32 instead
of float64 coordinates.
"""

import functools
from collections.abc import Callable, Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from noah_jax import distributed
from noah_jax.data.device_draws import CODES, JITTER_CODES
from noah_jax.data.transforms import TrainTransform

# Takes uint8 images and what was drawn for them, returns uint8 images.
ApplyDraws = Callable[[jax.Array, jax.Array], jax.Array]

_LEVELS = np.arange(256, dtype=np.int32)
_GREY = np.array([19595, 38470, 7471], np.int32)  # of 65536: Pillow's luminance


def make_apply_draws(transform: TrainTransform, mesh: Mesh | None) -> ApplyDraws | None:
    """Makes what applies the draws of a transform; `None` if it leaves nothing to the device.

    Args:
      transform: The training transform.
      mesh: The devices that share the batch; each works on its own images.
    """
    if transform.draw_shape is None:
        return None
    apply = functools.partial(
        augment,
        fill=transform.fill,
        codes=CODES if transform.rand_augment else JITTER_CODES,
        bicubic=transform.interpolation != "bilinear",
    )
    if mesh is None:
        return apply
    spec = distributed.batch_sharding(mesh).spec
    return jax.shard_map(apply, mesh=mesh, in_specs=(spec, spec), out_specs=spec)


def augment(
    images: jax.Array,
    draws: jax.Array,
    *,
    fill: tuple[int, int, int],
    codes: Collection[str] = CODES,
    bicubic: bool,
) -> jax.Array:
    """Applies what was drawn for every image.

    Args:
      images: uint8 `[batch, height, width, 3]`.
      draws: float32 `[batch, rows, columns]`, see `noah_jax.data.device_draws.encode_draws`.
      fill: Colour of the pixels that come from beyond an image, in levels of 0..255.
      codes: The operations that can have been drawn. What only others need is not computed.
      bicubic: Whether any operation interpolates bicubically. If not, a pixel is made of four
        others instead of sixteen.

    Returns:
      uint8 `[batch, height, width, 3]`.
    """

    def one(image: jax.Array, rows: jax.Array) -> jax.Array:
        image = image.astype(jnp.int32)
        for row in rows:
            image = _look_up(image, row, codes)
            image = _blend(image, row, codes)
            if "affine" in codes:
                image = _move(image, row, fill, bicubic)
        return image.astype(jnp.uint8)

    return jax.vmap(one)(images, draws)


def _is(row: jax.Array, *names: str) -> jax.Array:
    return functools.reduce(jnp.logical_or, (row[0] == CODES.index(name) for name in names))


def _look_up(image: jax.Array, row: jax.Array, codes: Collection[str]) -> jax.Array:
    """Replaces levels by the table of an operation, `[3, 256]`."""
    pixels = image.reshape(-1, 3)
    argument = row[2].astype(jnp.int32)
    levels = jnp.asarray(_LEVELS)

    @functools.cache
    def counts() -> jax.Array:
        return jax.vmap(lambda x: jnp.bincount(x, length=256), in_axes=1)(pixels)

    tables: dict[str, Callable[[], jax.Array]] = {
        "autocontrast": lambda: jax.vmap(_autocontrast)(counts()),
        "equalize": lambda: jax.vmap(_equalize)(counts()),
        "invert": lambda: 255 - levels,
        "posterize": lambda: levels & argument,
        "solarize": lambda: jnp.where(argument > levels, levels, 255 - levels),
        "solarize_add": lambda: jnp.where(
            levels < 128, jnp.minimum(255, levels + argument), levels
        ),
        "brightness": lambda: _blended(jnp.zeros_like(levels), levels, row[2]),
        "contrast": lambda: _blended(_mean(_grey(image)), levels, row[2]),
    }
    table = jnp.broadcast_to(levels, (3, 256))
    for name, make in tables.items():
        if name in codes:
            table = jnp.where(_is(row, name), make(), table)
    return jnp.take_along_axis(table.T, pixels, axis=0).reshape(image.shape)


def _autocontrast(counts: jax.Array) -> jax.Array:
    """Returns the table of `ImageOps.autocontrast` for the counts of 256 levels."""
    low, high = _first(counts), 255 - _first(counts[::-1])
    span = jnp.maximum(high - low, 1)
    table = jnp.clip((_LEVELS - low) * 255 // span, 0, 255)
    keys, levels = map(jnp.asarray, _rounded_down())
    place = jnp.searchsorted(keys, low * 256 + high)
    found = keys[jnp.minimum(place, len(keys) - 1)] == low * 256 + high
    lowered = (_LEVELS[:, None] == levels[jnp.minimum(place, len(keys) - 1)]).any(1) & found
    return jnp.where(high > low, table - lowered, _LEVELS)


@functools.cache
def _rounded_down() -> tuple[np.ndarray, np.ndarray]:
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
        inexact = (_LEVELS * scale + -low * scale).astype(np.int64)
        exact = (_LEVELS - low) * 255 // (high - low)
        inside = (low <= _LEVELS) & (high >= _LEVELS)
        for i, level in zip(*np.nonzero((inexact != exact) & inside), strict=True):
            found.setdefault(256 * low + int(high[i, 0]), []).append(int(level))
    longest = max(map(len, found.values()))
    levels = [own + [-1] * (longest - len(own)) for own in found.values()]
    order = np.argsort(list(found))
    return np.array(list(found), np.int32)[order], np.array(levels, np.int32)[order]


def _equalize(counts: jax.Array) -> jax.Array:
    """Returns the table of `ImageOps.equalize` for the counts of 256 levels."""
    highest = 255 - _first(counts[::-1])
    step = (counts.sum() - counts[highest]) // 255
    before = jnp.cumsum(counts) - counts
    table = (before + step // 2) // jnp.maximum(step, 1)
    return jnp.where(step > 0, jnp.minimum(table, 255), _LEVELS)


def _first(counts: jax.Array) -> jax.Array:
    """Returns the lowest level that occurs."""
    return jnp.argmax(counts > 0)


def _blend(image: jax.Array, row: jax.Array, codes: Collection[str]) -> jax.Array:
    """Blends with the grey image for "color", with the smoothed one for "sharpness"."""
    other = _grey(image)[..., None]
    if "sharpness" in codes:
        other = jnp.where(_is(row, "color"), other, _smoothed(image))
    return jnp.where(_is(row, "color", "sharpness"), _blended(other, image, row[2]), image)


def _blended(other: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns `Image.blend(other, image, factor)`, which rounds towards zero."""
    exact = factor * (image - other).astype(jnp.float32)  # see `rounded_factor`
    return jnp.clip(other.astype(jnp.float32) + exact, 0, 255).astype(jnp.int32)


def _grey(image: jax.Array) -> jax.Array:
    """Returns Pillow's luminance of `[height, width, 3]`."""
    return ((image * _GREY).sum(-1) + 0x8000) >> 16


def _mean(grey: jax.Array) -> jax.Array:
    """Returns the mean level, rounded half up."""
    return (2 * grey.sum() + grey.size) // (2 * grey.size)


def _smoothed(image: jax.Array) -> jax.Array:
    """Returns Pillow's `ImageFilter.SMOOTH`, which leaves the border as it is."""
    height, width, _ = image.shape
    if height < 3 or width < 3:
        return image
    rows = image[:-2] + image[1:-1] + image[2:]
    nine = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    inside = (2 * (nine + 4 * image[1:-1, 1:-1]) + 13) // 26  # the kernel's sum is 13
    return image.at[1:-1, 1:-1].set(inside)


def _move(image: jax.Array, row: jax.Array, fill: tuple[int, int, int], bicubic: bool) -> jax.Array:
    """Moves pixels by an affine matrix, as `Image.transform` does."""
    height, width, _ = image.shape
    a, b, c, d, e, f = row[2:8]
    x = jnp.arange(width, dtype=jnp.float32) + 0.5
    y = jnp.arange(height, dtype=jnp.float32)[:, None] + 0.5
    from_x, from_y = a * x + b * y + c, d * x + e * y + f
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    left, way_x = _place(from_x)
    top, way_y = _place(from_y)
    offsets = range(-1, 3) if bicubic else range(2)
    packed = image[..., 0] | image[..., 1] << 8 | image[..., 2] << 16  # one gather for all three
    packed = packed.reshape(-1)

    def line(offset: int) -> jax.Array:
        row_start = jnp.clip(top + offset, 0, height - 1) * width
        pixels = [packed[row_start + jnp.clip(left + i, 0, width - 1)] for i in offsets]
        levels = [jnp.stack([x & 255, x >> 8 & 255, x >> 16], -1) for x in pixels]
        return _interpolated([x.astype(jnp.float32) for x in levels], way_x[..., None], row[1])

    moved = _interpolated([line(offset) for offset in offsets], way_y[..., None], row[1])
    levels = jnp.clip(moved, 0, 255).astype(jnp.int32)
    levels = jnp.where(inside[..., None], levels, jnp.array(fill))
    return jnp.where(_is(row, "affine"), levels, image)


def _place(place: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the pixel before a place along an axis, and how far behind it the place is."""
    before = jnp.floor(place - 0.5)
    return before.astype(jnp.int32), place - 0.5 - before


def _interpolated(levels: Sequence[jax.Array], way: jax.Array, is_bicubic: jax.Array) -> jax.Array:
    """Interpolates between two levels, or from four if `is_bicubic`, in Pillow's order of terms.

    The order matters, because the result is cut to whole levels: equal levels must give
    themselves.
    """
    if len(levels) == 2:
        before, after = levels
        return before + (after - before) * way
    first, before, after, last = levels
    third = 2 * (first - before) + after - last
    fourth = -first + before - after + last
    cubic = before + way * (after - first + way * (third + way * fourth))
    return jnp.where(is_bicubic > 0, cubic, before + (after - before) * way)
