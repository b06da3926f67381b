"""The arithmetic of BatchNorm and LayerNorm, with backward passes of their own.

On TPUs both are bound by reading `x`. For bfloat16 inputs, mean and variance come from one pass
over the data, as E[x^2] - E[x]^2: in float32 this loses no more than the rounding of `x` has
lost. For float32 inputs the variance takes a second pass. The gradient's sums take one pass, too.
JAX's own gradient reads `x` once more, for the gradient of the mean inside the variance, which is
zero.

All of it is plain JAX, so it can be differentiated once more (in reverse mode).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from noah_jax.nn.dtypes import widen
from noah_jax.nn.per_device import shards_of_batch

Residuals = tuple[jax.Array, ...]
_Map = Callable[[jax.Array], jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def normalise_channels(
    epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array
) -> jax.Array:
    """LayerNorm: `(x - mean) / sqrt(var + epsilon) * scale + bias` over the channels.

    Args:
      epsilon: Added to the variance.
      x: `[..., channels]`.
      scale: `[channels]`.
      bias: `[channels]`.

    Returns:
      The normalised `x`, at least float32.
    """
    return _channels_forward(epsilon, x, scale, bias)[0]


def _channels_forward(
    epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, Residuals]:
    wide = widen(x)
    mean, var = _moments(x.dtype, wide, _mean_of_channels, lambda y: y)
    inv_std = jax.lax.rsqrt(var + epsilon)
    return (wide - mean) * (inv_std * scale) + bias, (x, scale, bias, mean, inv_std)


def _channels_backward(
    epsilon: float, residuals: Residuals, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale, bias, mean, inv_std = residuals
    normalised = (widen(x) - mean) * inv_std
    slope = cotangent * scale
    # A change of `x` along a constant or along itself is normalised away, so these parts go.
    along_one, along_x = _mean_of_channels(slope), _mean_of_channels(slope * normalised)
    d_x = inv_std * (slope - along_one - normalised * along_x)
    others = tuple(range(x.ndim - 1))
    d_scale, d_bias = (cotangent * normalised).sum(others), cotangent.sum(others)
    return d_x.astype(x.dtype), d_scale.astype(scale.dtype), d_bias.astype(bias.dtype)


normalise_channels.defvjp(_channels_forward, _channels_backward)


def _mean_of_channels(y: jax.Array) -> jax.Array:
    return y.mean(-1, keepdims=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def normalise_images(
    batch_norm_group: int,
    epsilon: float,
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shift: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """BatchNorm: every `batch_norm_group` consecutive images have their own mean and variance.

    Args:
      batch_norm_group: Images per statistic.
      epsilon: Added to the variance.
      x: `[batch, *spatial, channels]`.
      scale: `[channels]`.
      bias: `[channels]`.
      shift: `[channels]`, roughly the mean. It is subtracted before moments are computed in one
        pass, so that E[x^2] - E[x]^2 does not cancel.

    Returns:
      The normalised `x`, at least float32, and the mean and the variance averaged over the
      statistics, both `[channels]`, which have no gradient.
    """
    return _images_forward(batch_norm_group, epsilon, x, scale, bias, shift)[0]


def _images_forward(
    batch_norm_group: int,
    epsilon: float,
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shift: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], Residuals]:
    wide, mean_of, for_images = _grouped(x, batch_norm_group)
    if x.dtype == wide.dtype:  # it takes two passes, so a shift would only round once more
        shift = jnp.zeros_like(shift)
    wide = wide - shift
    mean, var = _moments(x.dtype, wide, mean_of, for_images)
    inv_std = jax.lax.rsqrt(var + epsilon)
    out = (wide - for_images(mean)) * for_images(scale * inv_std) + bias
    channels = x.shape[-1]
    average_mean = shift + mean.reshape(-1, channels).mean(0)
    average_var = var.reshape(-1, channels).mean(0)
    residuals = x, scale, bias, shift, mean, inv_std
    return (out.reshape(x.shape), average_mean, average_var), residuals


def _images_backward(
    batch_norm_group: int,
    epsilon: float,
    residuals: Residuals,
    cotangents: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    x, scale, bias, shift, mean, inv_std = residuals
    wide, mean_of, for_images = _grouped(x, batch_norm_group)
    cotangent, _, _ = _grouped(cotangents[0], batch_norm_group)
    normalised = (wide - shift - for_images(mean)) * for_images(inv_std)
    along_one, along_x = mean_of(cotangent), mean_of(cotangent * normalised)
    d_x = for_images(scale * inv_std) * (
        cotangent - for_images(along_one) - normalised * for_images(along_x)
    )
    count = batch_norm_group * math.prod(x.shape[1:-1])
    d_bias, d_scale = (y.reshape(-1, x.shape[-1]).sum(0) * count for y in (along_one, along_x))
    return (
        d_x.reshape(x.shape).astype(x.dtype),
        d_scale.astype(scale.dtype),
        d_bias.astype(bias.dtype),
        jnp.zeros_like(shift),
    )


normalise_images.defvjp(_images_forward, _images_backward)


def _moments(
    dtype: Any, wide: jax.Array, mean_of: _Map, spread: _Map
) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of an array that had `dtype` before it was widened."""
    mean = mean_of(wide)
    if dtype == wide.dtype:
        return mean, mean_of(jnp.square(wide - spread(mean)))
    return mean, jnp.maximum(mean_of(jnp.square(wide)) - jnp.square(mean), 0)


def _grouped(x: jax.Array, batch_norm_group: int) -> tuple[jax.Array, _Map, _Map]:
    """Prepares `[batch, *spatial, channels]` for one statistic per `batch_norm_group` images.

    Returns:
      `x` widened; a function that takes means over the images and positions of each statistic;
      and a function that hands a statistic's value back to its images.
    """
    batch = x.shape[0]
    wide = widen(x)
    if _crosses_devices(batch, batch_norm_group):
        spatial = tuple(range(1, x.ndim - 1))
        return wide, *_means_by_product(batch, batch_norm_group, spatial)
    wide = wide.reshape(batch // batch_norm_group, batch_norm_group, *x.shape[1:])
    axes = tuple(range(1, wide.ndim - 1))
    return wide, lambda y: y.mean(axes, keepdims=True), lambda y: y


def _crosses_devices(batch: int, batch_norm_group: int) -> bool:
    """Returns whether the images of one statistic end in the middle of a device's shard.

    They do not if a device holds whole statistics, or a statistic whole devices.
    """
    each = batch // shards_of_batch()
    return bool(each and each % batch_norm_group and batch_norm_group % each)


def _means_by_product(
    batch: int, batch_norm_group: int, spatial: tuple[int, ...]
) -> tuple[_Map, _Map]:
    """The two functions of `_grouped` as matrix products over the images, without reshaping.

    An axis of statistics cannot be sharded where a device's shard ends inside a statistic: XLA
    would gather the whole batch. With a product the devices exchange only sums.

    Args:
      batch: Number of images.
      batch_norm_group: Images per statistic.
      spatial: Axes of the positions.

    Returns:
      A function from `[batch, *spatial, channels]` to `[statistics, channels]`, and one from
      there to `[batch, 1, ..., channels]`.
    """
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

    def member(dtype: Any) -> jax.Array:
        index = jnp.arange(batch) // batch_norm_group
        return jax.nn.one_hot(index, batch // batch_norm_group, dtype=dtype)

    def mean_of(y: jax.Array) -> jax.Array:
        return product("bg,bc->gc", member(y.dtype), y.mean(spatial)) / batch_norm_group

    def for_images(y: jax.Array) -> jax.Array:
        return jnp.expand_dims(product("bg,gc->bc", member(y.dtype), y), spatial)

    return mean_of, for_images
