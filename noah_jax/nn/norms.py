"""What BatchNorm and LayerNorm compute, with backward passes of their own.

On TPUs these are bound by reading `x`. Of bfloat16 one pass gives mean and variance, as
E[x^2] - E[x]^2: in float32 it loses no more than the rounding of `x` has lost. Of float32 itself
the variance takes a second pass. The gradient's sums take one pass, too; JAX's own gradient goes
through `x` once more, for that of the mean inside the variance, which is zero.

All of it is plain JAX, so it can be differentiated once more (in reverse mode).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from noah_jax.nn.dtypes import widen


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def normalise_channels(epsilon, x, scale, bias):
    """LayerNorm.

    Args:
      epsilon: added to the variance.
      x: `[..., channels]`.
      scale: `[channels]`.
      bias: `[channels]`.

    Returns:
      The normalised `x`, at least float32.
    """
    return _channels_forward(epsilon, x, scale, bias)[0]


def _channels_forward(epsilon, x, scale, bias):
    wide = widen(x)
    mean, var = _moments(x.dtype, wide, _mean_of_channels, lambda y: y)
    inverse = jax.lax.rsqrt(var + epsilon)
    return (wide - mean) * (inverse * scale) + bias, (x, scale, bias, mean, inverse)


def _channels_backward(epsilon, kept, cotangent):
    x, scale, bias, mean, inverse = kept
    normalised = (widen(x) - mean) * inverse
    slope = cotangent * scale
    along_one, along_x = _mean_of_channels(slope), _mean_of_channels(slope * normalised)
    to_x = inverse * (slope - along_one - normalised * along_x)
    others = tuple(range(x.ndim - 1))
    to_scale, to_bias = (cotangent * normalised).sum(others), cotangent.sum(others)
    return to_x.astype(x.dtype), to_scale.astype(scale.dtype), to_bias.astype(bias.dtype)


normalise_channels.defvjp(_channels_forward, _channels_backward)


def _mean_of_channels(y):
    return y.mean(-1, keepdims=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def normalise_groups(group, epsilon, x, scale, bias, near):
    """BatchNorm over groups of images.

    Args:
      group: images per statistic.
      epsilon: added to the variance.
      x: `[batch, *spatial, channels]`.
      scale: `[channels]`.
      bias: `[channels]`.
      near: `[channels]`, roughly the mean: what moments from one pass are taken about.

    Returns:
      The normalised `x`, at least float32, and the groups' averaged mean and variance,
      `[channels]`, which have no gradient.
    """
    return _groups_forward(group, epsilon, x, scale, bias, near)[0]


def _groups_forward(group, epsilon, x, scale, bias, near):
    wide, mean_of, for_images = _grouped(x, group)
    if x.dtype == wide.dtype:  # which takes two passes: no need to round twice
        near = jnp.zeros_like(near)
    wide = wide - near
    mean, var = _moments(x.dtype, wide, mean_of, for_images)
    inverse = jax.lax.rsqrt(var + epsilon)
    out = (wide - for_images(mean)) * for_images(scale * inverse) + bias
    channels = x.shape[-1]
    averages = near + mean.reshape(-1, channels).mean(0), var.reshape(-1, channels).mean(0)
    return (out.reshape(x.shape), *averages), (x, scale, bias, near, mean, inverse)


def _groups_backward(group, epsilon, kept, cotangents):
    x, scale, bias, near, mean, inverse = kept
    wide, mean_of, for_images = _grouped(x, group)
    cotangent, _, _ = _grouped(cotangents[0], group)
    normalised = (wide - near - for_images(mean)) * for_images(inverse)
    along_one, along_x = mean_of(cotangent), mean_of(cotangent * normalised)
    to_x = for_images(scale * inverse) * (
        cotangent - for_images(along_one) - normalised * for_images(along_x)
    )
    count = group * math.prod(x.shape[1:-1])
    to_bias, to_scale = (y.reshape(-1, x.shape[-1]).sum(0) * count for y in (along_one, along_x))
    return (
        to_x.reshape(x.shape).astype(x.dtype),
        to_scale.astype(scale.dtype),
        to_bias.astype(bias.dtype),
        jnp.zeros_like(near),
    )


normalise_groups.defvjp(_groups_forward, _groups_backward)


def _moments(dtype, wide, mean_of, spread):
    """Mean and variance of what had `dtype` before it was widened."""
    mean = mean_of(wide)
    if dtype == wide.dtype:
        return mean, mean_of(jnp.square(wide - spread(mean)))
    return mean, jnp.maximum(mean_of(jnp.square(wide)) - jnp.square(mean), 0)


def _grouped(x: jax.Array, group: int) -> tuple[jax.Array, Callable, Callable]:
    """`x` widened, its means over groups, and what turns a group's value into its images'."""
    batch = x.shape[0]
    wide = widen(x)
    if _lie_across(batch, group):
        return wide, *_sums_by_product(batch, group, spatial=tuple(range(1, x.ndim - 1)))
    wide = wide.reshape(batch // group, group, *x.shape[1:])
    axes = tuple(range(1, wide.ndim - 1))
    return wide, lambda y: y.mean(axes, keepdims=True), lambda y: y


def _lie_across(batch: int, group: int) -> bool:
    """Whether groups lie across the borders between devices, each with a part of its own there.

    Groups that fill whole devices, or of which devices hold whole ones, do not.
    """
    each = batch // max(jax.sharding.get_abstract_mesh().size, 1)
    return bool(each and each % group and group % each)


def _sums_by_product(batch: int, group: int, spatial: tuple[int, ...]) -> tuple[Callable, Callable]:
    """Means over groups and what turns a group's value into its images', without reshaping.

    An axis of groups cannot be shared by devices whose borders are not the groups': XLA would
    gather the whole batch. As a product over the images, the devices exchange sums alone.

    Args:
      batch: images.
      group: images per group.
      spatial: axes of the positions.

    Returns:
      From `[batch, *spatial, channels]` to `[groups, channels]`, and from there to
      `[batch, 1, ..., channels]`.
    """
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

    def member(dtype: Any) -> jax.Array:
        return jax.nn.one_hot(jnp.arange(batch) // group, batch // group, dtype=dtype)

    def mean_of(y: jax.Array) -> jax.Array:
        return product("bg,bc->gc", member(y.dtype), y.mean(spatial)) / group

    def for_images(y: jax.Array) -> jax.Array:
        return jnp.expand_dims(product("bg,gc->bc", member(y.dtype), y), spatial)

    return mean_of, for_images
