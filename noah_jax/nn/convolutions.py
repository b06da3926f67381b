"""Convolutions in the form that each platform is fast with: the same numbers in all of them.

TPUs and GPUs get XLA's own convolution. On CPUs that one is slow where there are few products
for a value, so a program compiled for a CPU has another form; only one is ever compiled.
Images are `[batch, height, width, channels]`; kernels `[size, size, channels of a group,
out_features]`, of odd size and the images' dtype.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from noah_jax.nn.dtypes import widen


def native_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """XLA's own convolution, with `size // 2` zeros on every side; groups by the shapes.

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
    """`native_conv`, depthwise or without groups, as multiply-adds of shifted images.

    There is one for every kernel tap and channel of a group; they are summed in at least float32.
    """
    size, _, group, _ = kernel.shape
    pad = size // 2
    padded = widen(jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0))))
    kernel = widen(kernel)
    height, width = ((n - 1) // stride * stride + 1 for n in x.shape[1:3])
    out = jnp.zeros((), padded.dtype)
    for i in range(size):
        for j in range(size):
            tap = padded[:, i : i + height : stride, j : j + width : stride]
            for c in range(group):
                channels = tap if group == 1 else tap[..., c : c + 1]
                out = out + channels * kernel[i, j, c]
    return out.astype(x.dtype)


def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """A convolution of every channel by itself; the kernel is `[size, size, 1, channels]`.

    On CPUs these are shifted multiply-adds: XLA's takes some 25 times as long.
    """
    return _by_platform(shifted_conv, x, kernel, stride)


def pointwise_conv(x, kernel, strides, padding, **arguments) -> jax.Array:
    """`jax.lax.conv_general_dilated` for a 1x1 kernel without groups and padding.

    On CPUs this is a matrix product: the mobile networks evaluate 4 to 8 % faster with it.
    """
    del padding, arguments
    return _by_platform(_matrix_product, x, kernel, strides[0])


def image_conv(x, kernel, strides, padding, **arguments) -> jax.Array:
    """`jax.lax.conv_general_dilated` for images of 3 channels, a 3x3 kernel and padding 1.

    On CPUs these are shifted multiply-adds: XLA's takes 2 to 10 times as long with 16 to 32
    output channels (with 64 it is the faster one). Its gradient has no such weakness.
    """
    del padding, arguments
    return _by_platform(_shifted_image_conv, x, kernel, strides[0])


def _by_platform(cpu: Callable[..., jax.Array], x, kernel, stride) -> jax.Array:
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: cpu(x, kernel, stride),
        default=lambda x, kernel: native_conv(x, kernel, stride),
    )


def _matrix_product(x, kernel, stride):
    return x[:, ::stride, ::stride] @ kernel[0, 0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _shifted_image_conv(x, kernel, stride):
    return shifted_conv(x, kernel, stride)


def _shifted_image_conv_forward(x, kernel, stride):
    return shifted_conv(x, kernel, stride), (x, kernel)


def _shifted_image_conv_backward(stride, operands, cotangent):
    _, pullback = jax.vjp(lambda x, kernel: native_conv(x, kernel, stride), *operands)
    return pullback(cotangent)


_shifted_image_conv.defvjp(_shifted_image_conv_forward, _shifted_image_conv_backward)
