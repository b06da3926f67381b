"""Layers with PyTorch's exact semantics, channels last.

Everything in which PyTorch and Flax differ is settled here: BatchNorm's unbiased running
variance, explicit symmetric padding, activations whose gradient vanishes at their bounds, and the
initialisers.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from noah_jax.errors import InputError
from noah_jax.nn.convolutions import conv_form, depthwise_conv
from noah_jax.nn.dropout import Key, kept_elements, kept_images
from noah_jax.nn.dtypes import widen
from noah_jax.nn.norms import normalise_channels, normalise_images

# PyTorch's fan-out counts the whole kernel and all output channels, as this does for HWIO.
kaiming_normal_fan_out = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


def torch_default_kernel() -> nnx.Initializer:
    """PyTorch's default for kernels of convolutions and linears: uniform in +-1/sqrt(fan_in)."""
    return nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_default_bias(fan_in: int) -> nnx.Initializer:
    """PyTorch's default for biases: uniform in +-1/sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32, **_: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def relu6(x: jax.Array) -> jax.Array:
    """min(max(x, 0), 6), with PyTorch's gradient: 0 at both bounds (JAX's is 1/2 there)."""
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
    use_bias: bool = False,
    dtype: Any = jnp.float32,
    kernel_init: nnx.Initializer = kaiming_normal_fan_out,
    bias_init: nnx.Initializer = nnx.initializers.zeros,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Returns a square 2-D convolution, NHWC, padded on both sides as PyTorch pads.

    On CPUs some sizes are computed in a faster form; see `conv_form`.

    Args:
      in_features: Input channels.
      out_features: Output channels.
      kernel_size: Height and width of the kernel.
      stride: Step in both directions.
      padding: Zeros on every side; by default `kernel_size // 2`. ("SAME" differs: with stride 2
        it pads one side only.)
      use_bias: Whether there is a bias.
      dtype: Compute dtype; parameters are float32.
      kernel_init: Initialiser of the HWIO kernel.
      bias_init: Initialiser of the bias.
      rngs: Source of the initial weights.
    """
    pad = kernel_size // 2 if padding is None else padding
    return nnx.Conv(
        in_features,
        out_features,
        (kernel_size, kernel_size),
        strides=stride,
        padding=((pad, pad), (pad, pad)),
        use_bias=use_bias,
        conv_general_dilated=conv_form(in_features, out_features, kernel_size, padding=pad),
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
    """A depthwise convolution without a bias.

    Args:
      features: Channels.
      kernel_size: Height and width of the kernel, odd.
      stride: Step in both directions.
      dtype: Compute dtype; the kernel is float32.
      kernel_init: Initialiser of the kernel, `[kernel_size, kernel_size, 1, features]`.
      rngs: Source of the initial weights.
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
        """`[batch, height, width, features]` -> the same, with both sides divided by the stride."""
        return depthwise_conv(x.astype(self.dtype), self.kernel.astype(self.dtype), self.stride)


class BatchNorm(nnx.Module):
    """BatchNorm with PyTorch's statistics, over a fixed number of images.

    While training, every `batch_norm_group` consecutive images are normalised by their own mean
    and biased variance. The running statistics take `momentum` of the averaged mean and of the
    averaged **unbiased** variance (Flax takes the biased one). The split into statistics happens
    inside the layer, so the numbers do not depend on the number of devices. Images that share a
    statistic and lie on one device need no communication; otherwise their devices exchange sums.

    Args:
      num_features: Channels.
      batch_norm_group: Images per statistic; `None` is the whole batch.
      momentum: Weight of the new statistics, in PyTorch's convention.
      epsilon: Added to the variance.
      dtype: Dtype of the output; statistics are always float32.

    Raises:
      InputError: If `batch_norm_group` is below 1.
    """

    def __init__(
        self,
        num_features: int,
        *,
        batch_norm_group: int | None = None,
        momentum: float = 0.1,
        epsilon: float = 1e-5,
        dtype: Any = jnp.float32,
    ):
        if batch_norm_group is not None and batch_norm_group < 1:
            raise InputError(
                f"batch_norm_group must be at least 1 image or None, got {batch_norm_group}"
            )
        self.scale = nnx.Param(jnp.ones(num_features, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(num_features, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(num_features, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(num_features, jnp.float32))
        self.batch_norm_group = batch_norm_group
        self.momentum = momentum
        self.epsilon = epsilon
        self.dtype = dtype

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises `[batch, *spatial, num_features]`; updates the statistics in training.

        Raises:
          InputError: In training, if the batch does not divide into statistics, or if a statistic
            has a single value per channel.
        """
        if not train:
            factor = self.scale[...] * jax.lax.rsqrt(self.var[...] + self.epsilon)
            offset = self.bias[...] - self.mean[...] * factor
            return (widen(x) * factor + offset).astype(self.dtype)

        batch = x.shape[0]
        images = batch if self.batch_norm_group is None else self.batch_norm_group
        if batch % images:
            raise InputError(
                f"batch_norm_group={images} does not divide the batch of {batch} images;"
                f" choose a divisor of {batch}, or None for the whole batch"
            )
        count = images * math.prod(x.shape[1:-1])
        if count < 2:
            raise InputError(
                f"BatchNorm needs more than one value per channel to train, got {images} image(s)"
                f" of shape {x.shape[1:]}; choose a larger batch_norm_group or image"
            )
        out, mean, var = normalise_images(
            images, self.epsilon, x, self.scale[...], self.bias[...], self.mean[...]
        )
        m = self.momentum
        self.mean[...] = (1 - m) * self.mean[...] + m * mean
        self.var[...] = (1 - m) * self.var[...] + m * var * (count / (count - 1))
        return out.astype(self.dtype)


class ConvNorm(nnx.Module):
    """Convolution without bias, BatchNorm, activation.

    Args:
      in_features: Input channels.
      out_features: Output channels; equal to `in_features` if `depthwise`.
      kernel_size: Height and width of the kernel.
      stride: Step in both directions.
      depthwise: Whether every channel is convolved by itself.
      activation: Applied after the BatchNorm; `None` for none.
      norm: Makes the BatchNorm, called as `norm(out_features)`.
      dtype: Compute dtype of the convolution.
      kernel_init: Initialiser of the HWIO kernel.
      rngs: Source of the initial weights.
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
        common = dict(stride=stride, dtype=dtype, kernel_init=kernel_init, rngs=rngs)
        self.conv: nnx.Conv | DepthwiseConv
        if depthwise:
            self.conv = DepthwiseConv(out_features, kernel_size, **common)
        else:
            self.conv = conv(in_features, out_features, kernel_size, **common)
        self.bn = norm(out_features)
        self.activation = activation

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[batch, height, width, in_features]` -> `[batch, rows, columns, out_features]`."""
        x = self.bn(self.conv(x), train=train)
        return x if self.activation is None else self.activation(x)


class LayerNorm(nnx.Module):
    """LayerNorm over the channels, computed in float32 whatever the dtypes around it.

    For float32 inputs the variance is the mean squared distance from the mean, as in PyTorch.
    Flax's default, E[x^2] - E[x]^2, loses digits where the mean is large.

    Args:
      num_features: Channels.
      epsilon: Added to the variance; the models here differ in it, so it has no default.
      dtype: Dtype of the output.
      rngs: Unused, because the initial weights are constants.
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


def drop_path(x: jax.Array, rate: float, key: Key | None) -> jax.Array:
    """Stochastic depth: drops the whole residual branch of an image.

    Args:
      x: The branch, `[batch, ...]`.
      rate: Probability that an image's branch becomes zero. The others are divided by
        `1 - rate`, so the mean stays.
      key: Random key, one per branch; `None` switches it off (evaluation).
    """
    if key is None or not rate:
        return x
    keep = kept_images(key, len(x), rate).reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.where(keep, x / (1 - rate), 0)


class Dropout(nnx.Module):
    """Dropout whose masks are a function of the key and the image's index in the batch.

    Args:
      rate: Probability that an element becomes zero, in [0, 1). The others are divided by
        `1 - rate`, so the mean stays.
    """

    def __init__(self, rate: float):
        self.rate = rate

    def __call__(self, x: jax.Array, key: Key | None) -> jax.Array:
        """Drops elements of `[batch, ..., channels]`; `None` switches it off (evaluation)."""
        if key is None or not self.rate:
            return x
        return jnp.where(kept_elements(key, x.shape, self.rate), x / (1 - self.rate), 0)
