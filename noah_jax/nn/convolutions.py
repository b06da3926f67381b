"""Convolutions in the form that each platform computes fastest, with the same numbers in all.

TPUs and GPUs get XLA's own convolution. On CPUs XLA's is slow where every output value is a sum
of few products, so a program compiled for a CPU has another form. Only one form is ever compiled.
`conv_form` says which layer has which form.

Images are `[batch, height, width, channels]`. Kernels are `[size, size, in_features per channel
group, out_features]`, of odd size and of the images' dtype.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from noah_jax.nn.dtypes import widen


def conv_form(
    in_features: int, out_features: int, kernel_size: int, *, padding: int
) -> Callable[..., jax.Array]:
    """The function that computes a convolution layer, to replace `jax.lax.conv_general_dilated`.

    On CPUs two kinds of layers have a form of their own, if they have the usual padding of
    `kernel_size // 2`:

    - 1x1 kernels are a matrix product (`pointwise_conv`).
    - 3x3 kernels from 3 channels to fewer than 64, the first layer of the mobile networks, are
      shifted multiply-adds (`image_conv`).

    Depthwise layers have theirs in `depthwise_conv`.
    """
    if padding == kernel_size // 2:
        if kernel_size == 1:
            return pointwise_conv
        if kernel_size == 3 and in_features == 3 and out_features < 64:
            return image_conv
    return jax.lax.conv_general_dilated


def native_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """XLA's own convolution, with `size // 2` zeros on every side.

    The shapes say how many channel groups there are.

    Returns:
      `[batch, ceil(height / stride), ceil(width / stride), out_features]`.
    """
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def shifted_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`native_conv` as multiply-adds of shifted images, depthwise or without channel groups.

    There is one multiply-add for every kernel tap and input channel of a channel group. They are
    summed in at least float32.
    """
    size, _, in_features, _ = kernel.shape
    pad = size // 2
    padded = widen(jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0))))
    kernel = widen(kernel)
    height, width = ((n - 1) // stride * stride + 1 for n in x.shape[1:3])
    out = jnp.zeros((), padded.dtype)
    for i in range(size):
        for j in range(size):
            tap = padded[:, i : i + height : stride, j : j + width : stride]
            for c in range(in_features):
                channels = tap if in_features == 1 else tap[..., c : c + 1]
                out = out + channels * kernel[i, j, c]
    return out.astype(x.dtype)


def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolves every channel by itself; the kernel is `[size, size, 1, channels]`.

    On CPUs it is shifted multiply-adds, because XLA's convolution takes some 25 times as long.
    """
    return _by_platform(shifted_conv, x, kernel, stride)


def pointwise_conv(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, **arguments: Any
) -> jax.Array:
    """`jax.lax.conv_general_dilated` for a 1x1 kernel without channel groups and padding.

    On CPUs it is a matrix product, with which the mobile networks evaluate 4 to 8 % faster.
    """
    del padding, arguments
    return _by_platform(_matrix_product, x, kernel, strides[0])


def image_conv(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, **arguments: Any
) -> jax.Array:
    """`jax.lax.conv_general_dilated` for images of 3 channels, a 3x3 kernel and padding 1.

    On CPUs it is shifted multiply-adds, because XLA's convolution takes 2 to 10 times as long
    with 16 to 32 output channels (with 64 it is the faster one). Its gradient is fast as it is.
    """
    del padding, arguments
    return _by_platform(_shifted_image_conv, x, kernel, strides[0])


def _by_platform(
    on_cpu: Callable[..., jax.Array], x: jax.Array, kernel: jax.Array, stride: int
) -> jax.Array:
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: on_cpu(x, kernel, stride),
        default=lambda x, kernel: native_conv(x, kernel, stride),
    )


def _matrix_product(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return x[:, ::stride, ::stride] @ kernel[0, 0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _shifted_image_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return shifted_conv(x, kernel, stride)


def _shifted_image_conv_forward(
    x: jax.Array, kernel: jax.Array, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return shifted_conv(x, kernel, stride), (x, kernel)


def _shifted_image_conv_backward(
    stride: int, residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    _, pullback = jax.vjp(lambda x, kernel: native_conv(x, kernel, stride), *residuals)
    return pullback(cotangent)


_shifted_image_conv.defvjp(_shifted_image_conv_forward, _shifted_image_conv_backward)
