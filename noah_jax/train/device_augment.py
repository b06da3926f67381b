"""Applies colour jitter and RandAugment on the device, batched, to what the host drew.

An image has one row of numbers for each operation, see `noah_jax.data.device_draws`. All images of
a batch go through the same three stages for each row, and an operation is the identity in the
stages that are not its own: a table of 256 levels a channel, a blend with the image's grey or
smoothed version, and an affine movement of the pixels. This is the form for GPUs, where a loop over
images would start small kernels one by one, and for CPUs, where it compiles in half the time of the
other one. On TPUs `noah_jax.train.device_serial` takes the images one after another.

The first two give Pillow's pixels bit by bit, see `noah_jax.train.device_levels`. Moved pixels
differ from Pillow's by float32 instead of float64 coordinates.
"""

import functools
from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from noah_jax import distributed
from noah_jax.data.device_draws import CODES, JITTER_CODES
from noah_jax.data.transforms import TrainTransform
from noah_jax.train import device_levels
from noah_jax.train.device_serial import augment_serially
from noah_jax.train.device_shears import channels, interpolated, pack

# Takes uint8 images and what was drawn for them, returns uint8 images.
ApplyDraws = Callable[[jax.Array, jax.Array], jax.Array]


def make_apply_draws(transform: TrainTransform, mesh: Mesh | None) -> ApplyDraws | None:
    """Makes what applies the draws of a transform; `None` if it leaves nothing to the device.

    Args:
      transform: The training transform.
      mesh: The devices that share the batch; each works on its own images.
    """
    if transform.draw_shape is None:
        return None
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    apply = functools.partial(
        augment_serially if platform == "tpu" else augment,
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


def _grey(image: jax.Array) -> jax.Array:
    return device_levels.grey(*jnp.moveaxis(image, -1, 0))


def _look_up(image: jax.Array, row: jax.Array, codes: Collection[str]) -> jax.Array:
    """Replaces levels by the table of an operation, `[3, 256]`."""
    pixels = image.reshape(-1, 3)
    levels = jnp.asarray(device_levels.LEVELS)

    @functools.cache
    def counts() -> jax.Array:
        return jax.vmap(lambda x: jnp.bincount(x, length=256), in_axes=1)(pixels)

    tables: dict[str, Callable[[], jax.Array]] = {
        "autocontrast": lambda: jax.vmap(_autocontrast)(counts()),
        "equalize": lambda: jax.vmap(device_levels.equalize_table)(counts()),
        "contrast": lambda: device_levels.blended(
            device_levels.mean_level(_grey(image)), levels, row[2]
        ),
    }
    for name in device_levels.SIMPLE:
        tables[name] = functools.partial(device_levels.simple_levels, name, levels, row[2])
    table = jnp.broadcast_to(levels, (3, 256))
    for name, make in tables.items():
        if name in codes:
            table = jnp.where(_is(row, name), make(), table)
    return jnp.take_along_axis(table.T, pixels, axis=0).reshape(image.shape)


def _autocontrast(counts: jax.Array) -> jax.Array:
    """Returns the table of `ImageOps.autocontrast` for the counts of 256 levels."""
    low, high = device_levels.first_level(counts), 255 - device_levels.first_level(counts[::-1])
    pairs, lowered = map(jnp.asarray, device_levels.rounded_down())
    place = jnp.minimum(jnp.searchsorted(pairs, 256 * low + high), len(pairs) - 1)
    own = jnp.where(pairs[place] == 256 * low + high, lowered[place], -1)
    return device_levels.autocontrast(jnp.asarray(device_levels.LEVELS), low, high, own)


def _blend(image: jax.Array, row: jax.Array, codes: Collection[str]) -> jax.Array:
    """Blends with the grey image for "color", with the smoothed one for "sharpness"."""
    other = _grey(image)[..., None]
    if "sharpness" in codes:
        other = jnp.where(_is(row, "color"), other, _smoothed(image))
    blended = device_levels.blended(other, image, row[2])
    return jnp.where(_is(row, "color", "sharpness"), blended, image)


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
    packed = pack(*jnp.moveaxis(image, -1, 0)).reshape(-1)  # one gather for all three

    def line(offset: int) -> jax.Array:
        row_start = jnp.clip(top + offset, 0, height - 1) * width
        pixels = [packed[row_start + jnp.clip(left + i, 0, width - 1)] for i in offsets]
        levels = [jnp.stack(channels(x), -1) for x in pixels]
        return interpolated([x.astype(jnp.float32) for x in levels], way_x[..., None], row[1])

    moved = interpolated([line(offset) for offset in offsets], way_y[..., None], row[1])
    levels = jnp.clip(moved, 0, 255).astype(jnp.int32)
    levels = jnp.where(inside[..., None], levels, jnp.array(fill))
    return jnp.where(_is(row, "affine"), levels, image)


def _place(place: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the pixel before a place along an axis, and how far behind it the place is."""
    before = jnp.floor(place - 0.5)
    return before.astype(jnp.int32), place - 0.5 - before
