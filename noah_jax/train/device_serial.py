"""Applies what was drawn one image after another, each by its own operation alone, for TPUs.

One image keeps a TPU's core busy, and a TPU gathers pixels slowly. So a loop goes through all
operations that were drawn, and computes each without a gather. In the other form,
`noah_jax.train.device_augment`, all images go through every operation.
"""

import functools
from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp

from noah_jax.data.device_draws import CODES
from noah_jax.train import device_levels
from noah_jax.train.device_shears import channels, pack, rotated, sheared, shifted

# Takes and returns a packed image; the row is what was drawn.
Operate = Callable[[jax.Array, jax.Array], jax.Array]

# The code of an affine movement stands for three operations.
_AFFINE = ("rotate", "along_x", "along_y")


def augment_serially(
    images: jax.Array,
    draws: jax.Array,
    *,
    fill: tuple[int, int, int],
    codes: Collection[str],
    bicubic: bool,
) -> jax.Array:
    """Applies what was drawn for every image; see `noah_jax.train.device_augment.augment`."""
    batch, rows, _ = draws.shape
    operations = _operations(codes, fill=fill, bicubic=bicubic)
    names = list(operations)
    packed = pack(*(images[..., i].astype(jnp.int32) for i in range(3)))

    # ---- What there is to do: the first operation of all images, then the second, and so on.
    drawn = draws.transpose(1, 0, 2).reshape(rows * batch, -1)
    which = _which(drawn, names)
    todo = jnp.argsort(which < 0, stable=True).astype(jnp.int32)  # those with an operation first
    count = (which >= 0).sum()

    def apply(i: jax.Array, packed: jax.Array) -> jax.Array:
        item = todo[i]
        index = item % batch
        image = jax.lax.dynamic_index_in_dim(packed, index, keepdims=False)
        row = jax.lax.dynamic_index_in_dim(drawn, item, keepdims=False)
        image = jax.lax.switch(which[item], list(operations.values()), image, row)
        return jax.lax.dynamic_update_index_in_dim(packed, image, index, 0)

    packed = jax.lax.fori_loop(0, count, apply, packed)
    return jnp.stack(channels(packed), -1).astype(jnp.uint8)


def _which(drawn: jax.Array, names: list[str]) -> jax.Array:
    """Returns for rows of draws the positions of their operations in `names`; -1 for none."""
    positions = [names.index(code) if code in names else -1 for code in CODES]
    which = jnp.array(positions, jnp.int32)[drawn[:, 0].astype(jnp.int32)]
    if "rotate" in names:
        a, b, c, d, e, f = drawn[:, 2:8].T
        along_x = (d == 0) & (e == 1) & (f == 0)
        along_y = (b == 0) & (a == 1) & (c == 0)
        affine = jnp.where(along_y, names.index("along_y"), names.index("rotate"))
        affine = jnp.where(along_x, names.index("along_x"), affine)
        which = jnp.where(drawn[:, 0] == CODES.index("affine"), affine, which)
    return which


def _operations(
    codes: Collection[str], *, fill: tuple[int, int, int], bicubic: bool
) -> dict[str, Operate]:
    """Returns the operations by name."""
    operations: dict[str, Operate] = {
        **{name: functools.partial(_simple, name) for name in device_levels.SIMPLE},
        "autocontrast": _autocontrast,
        "equalize": _equalize,
        "contrast": _contrast,
        "color": _color,
        "sharpness": _sharpness,
    }
    operations = {name: operations[name] for name in operations if name in codes}
    if "affine" in codes:
        for name in _AFFINE:
            operations[name] = functools.partial(_move, name, fill=fill, bicubic=bicubic)
    return operations


def _simple(name: str, packed: jax.Array, row: jax.Array) -> jax.Array:
    return pack(*(device_levels.simple_levels(name, x, row[2]) for x in channels(packed)))


def _autocontrast(packed: jax.Array, row: jax.Array) -> jax.Array:
    pairs, levels = (jnp.asarray(x) for x in device_levels.rounded_down())

    def stretched(channel: jax.Array) -> jax.Array:
        low, high = channel.min(), channel.max()
        lowered = jnp.where(pairs == 256 * low + high, levels.T, -1).max(1)
        return device_levels.autocontrast(channel, low, high, lowered)

    return pack(*map(stretched, channels(packed)))


def _equalize(packed: jax.Array, row: jax.Array) -> jax.Array:
    """Counts and looks up levels as products of their two halves of four bits, `[16, ...]`.

    The factors are ones, zeros and levels, which are exact in bfloat16.
    """
    image = jnp.stack(channels(packed))
    digits = jnp.arange(16, dtype=jnp.int32)[:, None, None]
    high = ((image >> 4)[:, None] == digits).astype(jnp.float32)
    low = (image & 15)[:, None] == digits
    counts = jnp.einsum("chij,clij->cihl", high, low.astype(jnp.float32)).sum(1)
    tables = jax.vmap(device_levels.equalize_table)(counts.reshape(3, 256).astype(jnp.int32))
    rows = jnp.einsum("chl,chij->clij", tables.reshape(3, 16, 16).astype(jnp.float32), high)
    return pack(*jnp.where(low, rows, 0).sum(1).astype(jnp.int32))


def _contrast(packed: jax.Array, row: jax.Array) -> jax.Array:
    mean = device_levels.mean_level(device_levels.grey(*channels(packed)))
    return pack(*(device_levels.blended(mean, x, row[2]) for x in channels(packed)))


def _color(packed: jax.Array, row: jax.Array) -> jax.Array:
    grey = device_levels.grey(*channels(packed))
    return pack(*(device_levels.blended(grey, x, row[2]) for x in channels(packed)))


def _sharpness(packed: jax.Array, row: jax.Array) -> jax.Array:
    """Blends with Pillow's `ImageFilter.SMOOTH`, which leaves the border as it is."""
    height, width = packed.shape
    y, x = jnp.arange(height)[:, None], jnp.arange(width)[None]
    inside = (y > 0) & (y < height - 1) & (x > 0) & (x < width - 1)

    def sharpened(channel: jax.Array) -> jax.Array:
        three = shifted(channel, -1, 0) + channel + shifted(channel, 1, 0)
        nine = shifted(three, -1, 1) + three + shifted(three, 1, 1)
        smooth = (2 * (nine + 4 * channel) + 13) // 26  # the kernel's sum is 13
        return device_levels.blended(jnp.where(inside, smooth, channel), channel, row[2])

    return pack(*map(sharpened, channels(packed)))


def _move(
    name: str, packed: jax.Array, row: jax.Array, *, fill: tuple[int, int, int], bicubic: bool
) -> jax.Array:
    """Moves pixels by an affine matrix, as `Image.transform` does."""
    height, width = packed.shape
    a, b, c, d, e, f = matrix = tuple(row[2:8])
    if name == "rotate":
        levels = rotated(packed, matrix, row[1], bicubic=bicubic)
    else:
        axis = 1 if name == "along_x" else 0
        levels = sheared(packed, matrix, axis, row[1], bicubic=bicubic)
    x = jnp.arange(width, dtype=jnp.float32) + 0.5
    y = jnp.arange(height, dtype=jnp.float32)[:, None] + 0.5
    from_x, from_y = a * x + b * y + c, d * x + e * y + f
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    whole = pack(*(jnp.clip(x, 0, 255).astype(jnp.int32) for x in levels))
    return jnp.where(inside, whole, pack(*map(jnp.int32, fill)))
