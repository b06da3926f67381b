"""Layers with PyTorch's exact semantics, channels last.

Everything that differs between PyTorch and Flax is settled here: the unbiased running
variance of BatchNorm, explicit symmetric padding, activations whose gradient vanishes at
their bounds, and the initialisers.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from noah_jax.errors import InputError
from noah_jax.nn import dropout as dropouts
from noah_jax.nn.convolutions import depthwise_conv, image_conv, pointwise_conv
from noah_jax.nn.dtypes import widen
from noah_jax.nn.norms import normalise_channels, normalise_groups

# PyTorch's fan-out includes the whole kernel and all output channels, as here for HWIO.
kaiming_normal_fan_out = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


def torch_default_kernel() -> nnx.Initializer:
    """PyTorch's own start of convolutions and linears: uniform within 1/sqrt(fan_in)."""
    return nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_default_bias(fan_in: int) -> nnx.Initializer:
    """PyTorch's own start of a bias: uniform within 1/sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def relu6(x: jax.Array) -> jax.Array:
    """min(max(x, 0), 6), with PyTorch's gradient: 0 at both bounds (JAX's has 1/2 there)."""
    return jnp.where(x <= 0, jnp.zeros_like(x), jnp.where(x >= 6, jnp.full_like(x, 6), x))


def hard_sigmoid(x: jax.Array) -> jax.Array:
    """relu6(x + 3) / 6 (Howard et al., 2019)."""
    return relu6(x + 3) / 6


def hard_swish(x: jax.Array) -> jax.Array:
    """x * relu6(x + 3) / 6 (Howard et al., 2019)."""
    return x * hard_sigmoid(x)


def conv(
    in_features: int,
    out_features: int,
    kernel_size: int,
    *,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
    use_bias: bool = False,
    dtype: Any = jnp.float32,
    kernel_init: nnx.Initializer = kaiming_normal_fan_out,
    bias_init: nnx.Initializer = nnx.initializers.zeros,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A square 2-D convolution, NHWC, padded on both sides as PyTorch pads.

    Args:
      in_features: input channels.
      out_features: output channels.
      kernel_size: height and width of the kernel.
      stride: step in both directions.
      padding: zeros on every side; by default `kernel_size // 2`. ("SAME" is not this: with
        stride 2 it pads one side only.)
      groups: channel groups.
      use_bias: whether there is a bias.
      dtype: compute dtype; parameters are float32.
      kernel_init: initialiser of the HWIO kernel.
      bias_init: initialiser of the bias.
      rngs: source of the initial weights.
    """
    pad = kernel_size // 2 if padding is None else padding
    form = jax.lax.conv_general_dilated
    if groups == 1 and pad == kernel_size // 2:
        if kernel_size == 1:
            form = pointwise_conv
        elif kernel_size == 3 and in_features == 3 and out_features < 64:
            form = image_conv
    return nnx.Conv(
        in_features,
        out_features,
        (kernel_size, kernel_size),
        strides=stride,
        padding=((pad, pad), (pad, pad)),
        feature_group_count=groups,
        use_bias=use_bias,
        conv_general_dilated=form,
        dtype=dtype,
        param_dtype=jnp.float32,
        kernel_init=kernel_init,
        bias_init=bias_init,
        rngs=rngs,
    )


def max_pool(x: jax.Array, window: int, stride: int, padding: int) -> jax.Array:
    """PyTorch's MaxPool2d on `[batch, height, width, channels]`."""
    pad = (padding, padding)
    return nnx.max_pool(x, (window, window), (stride, stride), (pad, pad))


class DepthwiseConv(nnx.Module):
    """`depthwise_conv` with its weights, without a bias.

    Args:
      features: channels.
      kernel_size: height and width of the kernel, odd.
      stride: step in both directions.
      dtype: compute dtype; the kernel is float32.
      kernel_init: initialiser of the kernel, `[kernel_size, kernel_size, 1, features]`.
      rngs: source of the initial weights.
    """

    def __init__(
        self,
        features: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dtype: Any = jnp.float32,
        kernel_init: nnx.Initializer = kaiming_normal_fan_out,
        rngs: nnx.Rngs,
    ):
        shape = (kernel_size, kernel_size, 1, features)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))
        self.stride = stride
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        return depthwise_conv(x.astype(self.dtype), self.kernel.astype(self.dtype), self.stride)


class BatchNorm(nnx.Module):
    """BatchNorm with PyTorch's statistics over groups of the batch.

    While training every group of `group` consecutive images is normalised by its own mean
    and biased variance; the running statistics take `momentum` of the groups' averaged mean
    and **unbiased** variance (Flax keeps the biased one). The groups stand inside the layer
    as an axis of their own, so the numbers do not depend on the number of devices, and a
    group that lies on one device needs no communication; of others the devices that have a part
    of it exchange sums.

    Args:
      num_features: channels.
      group: images per statistic; `None` is the whole batch.
      momentum: weight of the new statistics, PyTorch's convention.
      epsilon: added to the variance.
      dtype: dtype of the output; statistics are always float32.
    """

    def __init__(
        self,
        num_features: int,
        *,
        group: int | None = None,
        momentum: float = 0.1,
        epsilon: float = 1e-5,
        dtype: Any = jnp.float32,
    ):
        if group is not None and group < 1:
            raise InputError(f"batch_norm_group must be at least 1 image or None, got {group}")
        self.scale = nnx.Param(jnp.ones(num_features, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(num_features, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(num_features, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(num_features, jnp.float32))
        self.group = group
        self.momentum = momentum
        self.epsilon = epsilon
        self.dtype = dtype

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises `[batch, *spatial, num_features]`; updates the statistics in training."""
        if not train:
            factor = self.scale[...] * jax.lax.rsqrt(self.var[...] + self.epsilon)
            offset = self.bias[...] - self.mean[...] * factor
            return (widen(x) * factor + offset).astype(self.dtype)

        batch = x.shape[0]
        group = batch if self.group is None else self.group
        if batch % group:
            raise InputError(
                f"batch_norm_group={group} does not divide the batch of {batch} images;"
                f" choose a divisor of {batch}, or None for the whole batch"
            )
        count = group * math.prod(x.shape[1:-1])
        if count < 2:
            raise InputError(
                f"BatchNorm needs more than one value per channel to train, got a group of {group}"
                f" image(s) of shape {x.shape[1:]}; choose a larger batch_norm_group or image"
            )
        out, mean, var = normalise_groups(
            group, self.epsilon, x, self.scale[...], self.bias[...], self.mean[...]
        )
        m = self.momentum
        self.mean[...] = (1 - m) * self.mean[...] + m * mean
        self.var[...] = (1 - m) * self.var[...] + m * var * (count / (count - 1))
        return out.astype(self.dtype)


class ConvNorm(nnx.Module):
    """Convolution without bias, BatchNorm, activation.

    Args:
      in_features: input channels.
      out_features: output channels; those of the input if `depthwise`.
      kernel_size: height and width of the kernel.
      stride: step in both directions.
      depthwise: whether every channel is convolved by itself.
      activation: what follows the BatchNorm; `None` is nothing.
      norm: makes the BatchNorm, called as `norm(out_features)`.
      dtype: compute dtype of the convolution.
      kernel_init: initialiser of the HWIO kernel.
      rngs: source of the initial weights.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        stride: int = 1,
        depthwise: bool = False,
        activation: Callable[[jax.Array], jax.Array] | None = None,
        norm: Callable[[int], BatchNorm],
        dtype: Any = jnp.float32,
        kernel_init: nnx.Initializer = kaiming_normal_fan_out,
        rngs: nnx.Rngs,
    ):
        same = dict(stride=stride, dtype=dtype, kernel_init=kernel_init, rngs=rngs)
        if depthwise:
            self.conv = DepthwiseConv(out_features, kernel_size, **same)
        else:
            self.conv = conv(in_features, out_features, kernel_size, **same)
        self.bn = norm(out_features)
        self.activation = activation

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = self.bn(self.conv(x), train=train)
        return x if self.activation is None else self.activation(x)


class LayerNorm(nnx.Module):
    """LayerNorm over the channels: float32 inside, whatever the dtypes around it.

    Of float32 the variance is the mean squared distance from the mean, as PyTorch's: Flax's
    default, E[x^2] - E[x]^2, loses digits where the mean is large.

    Args:
      num_features: channels.
      epsilon: added to the variance; the models here differ in it, so it has no default.
      dtype: dtype of the output.
      rngs: source of the initial weights, which are constants.
    """

    def __init__(
        self, num_features: int, *, epsilon: float, dtype: Any = jnp.float32, rngs: nnx.Rngs
    ):
        del rngs
        self.scale = nnx.Param(jnp.ones(num_features, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(num_features, jnp.float32))
        self.epsilon = epsilon
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises `[..., num_features]` over the last axis."""
        out = normalise_channels(self.epsilon, x, self.scale[...], self.bias[...])
        return out.astype(self.dtype)


def drop_path(x: jax.Array, rate: float, key: dropouts.Key | None) -> jax.Array:
    """Stochastic depth: drops the whole residual branch of a sample.

    Args:
      x: the branch, `[batch, ...]`.
      rate: probability that a sample's branch becomes zero; the kept ones are divided by
        `1 - rate`, so the mean stays.
      key: random key, one per branch; `None` switches it off (evaluation).
    """
    if key is None or not rate:
        return x
    keep = dropouts.kept_images(key, len(x), rate).reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.where(keep, x / (1 - rate), 0)


class Dropout(nnx.Module):
    """Dropout whose masks are a function of the key and the image's number in the batch.

    Args:
      rate: probability that an element becomes zero, in [0, 1); the kept ones are divided by
        `1 - rate`, so the mean stays.
    """

    def __init__(self, rate: float):
        self.rate = rate

    def __call__(self, x: jax.Array, key: dropouts.Key | None) -> jax.Array:
        """`[batch, ..., channels]`; a `key` of `None` switches it off (evaluation)."""
        if key is None or not self.rate:
            return x
        return jnp.where(dropouts.kept_elements(key, x.shape, self.rate), x / (1 - self.rate), 0)
