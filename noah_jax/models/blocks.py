"""What DeiT, PVT and the MLP family share.

In these blocks a random key of `None` means evaluation: dropout and stochastic depth are
off. The models turn their mode into such a key once, by `training_key`.
"""

import functools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from noah_jax.errors import InputError
from noah_jax.nn import dropout
from noah_jax.nn.dtypes import widen
from noah_jax.nn.layers import (
    Dropout,
    LayerNorm,
    conv,
    drop_path,
    torch_default_bias,
    torch_default_kernel,
)
from noah_jax.nn.remat import run_layer

# timm's trunc_normal_(std=0.02) of linears, class token and position embeddings. It cuts at
# +-2, not at two standard deviations: a plain normal.
normal_002 = nnx.initializers.normal(0.02)


def class_token(features: int, rngs: nnx.Rngs) -> nnx.Param:
    """A fresh class token, `[1, 1, features]`."""
    return nnx.Param(normal_002(rngs.params(), (1, 1, features), jnp.float32))


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, by erf.

    JAX writes it with erfc, which on CPUs takes three times as long as PyTorch's formula.
    """
    return jax.lax.platform_dependent(
        x, cpu=_erf_gelu, default=functools.partial(jax.nn.gelu, approximate=False)
    )


def _erf_gelu(x):
    wide = widen(x)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def patch_grid(size: tuple[int, int], patch_size: int, what: str = "image_size") -> tuple[int, int]:
    """Rows and columns of patches in an image of `(height, width)` pixels.

    Raises:
      ValueError: if the patches do not tile the image; `what` is the argument to blame.
    """
    if any(pixels % patch_size for pixels in size):
        nearest = tuple(max(1, round(pixels / patch_size)) * patch_size for pixels in size)
        raise InputError(
            f"{what}={size} does not divide into patches of {patch_size} pixels: height and"
            f" width must be multiples of {patch_size}, such as {nearest}"
        )
    return size[0] // patch_size, size[1] // patch_size


def check_image_size(images: jax.Array, image_size: tuple[int, int]) -> None:
    """Refuses images that are not of the size a model with fixed positions was made for."""
    if images.shape[1:3] != image_size:
        height, width = images.shape[1:3]
        raise InputError(
            f"the model was created for images of {image_size[0]}x{image_size[1]} pixels, got"
            f" {height}x{width}: resize them, or create it with image_size=({height}, {width})"
        )


def check_rates(**rates: float) -> None:
    """Refuses rates outside [0, 1)."""
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise InputError(f"{name} must lie in [0, 1), got {rate}")


def check_heads(width: int, num_heads: int) -> None:
    """Refuses channels that cannot be shared out evenly among the attention heads."""
    if width % num_heads:
        raise InputError(
            f"width {width} does not divide among {num_heads} attention heads: give num_heads too"
        )


def linear_rates(drop_path_rate: float, depth: int) -> list[float]:
    """Stochastic depth that rises linearly over the blocks, from 0 to `drop_path_rate`."""
    return [drop_path_rate * i / max(1, depth - 1) for i in range(depth)]


def training_key(
    key: jax.Array | None, *, train: bool, drop_rate: float, drop_path_rate: float
) -> jax.Array | None:
    """The key of a backbone's randomness, or `None` where it has none.

    Raises:
      ValueError: if the backbone needs a key to train and there is none.
    """
    if not train or not (drop_rate or drop_path_rate):
        return None
    if key is None:
        raise InputError("training with drop_rate or drop_path_rate needs a random key: pass key=")
    return key


def split_key(key: jax.Array | None, num: int) -> Iterable[jax.Array | None]:
    """`num` independent keys; `None` stays `None`."""
    return [None] * num if key is None else dropout.split(key, num)


def run_blocks(
    blocks: Iterable[nnx.Module], x: jax.Array, key: jax.Array | None, *, remat: bool
) -> jax.Array:
    """`x` through the blocks, each `block(x, key)` with a key of its own.

    Args:
      blocks: the blocks.
      x: their input.
      key: random key, or `None`.
      remat: see `run_layer`.
    """
    for i, block in enumerate(blocks):
        block_key = None if key is None else dropout.fold_in(key, i)
        x = run_layer(block, x, block_key, remat=remat)
    return x


class PatchEmbed(nnx.Module):
    """Cuts an image or a map into patches and projects each: one strided convolution.

    Args:
      in_features: channels of the input.
      features: channels of the output.
      patch_size: height and width of a patch.
      norm_epsilon: epsilon of a LayerNorm that follows; `None` for none.
      dtype: compute dtype.
      kernel_init: initialiser of the kernel; by default PyTorch's own.
      bias_init: initialiser of the bias; by default PyTorch's own.
      rngs: source of the initial weights.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        patch_size: int,
        *,
        norm_epsilon: float | None = None,
        dtype: Any,
        kernel_init: nnx.Initializer | None = None,
        bias_init: nnx.Initializer | None = None,
        rngs: nnx.Rngs,
    ):
        fan_in = in_features * patch_size**2
        self.proj = conv(
            in_features,
            features,
            patch_size,
            stride=patch_size,
            padding=0,
            use_bias=True,
            dtype=dtype,
            kernel_init=kernel_init or torch_default_kernel(),
            bias_init=bias_init or torch_default_bias(fan_in),
            rngs=rngs,
        )
        self.norm = (
            None
            if norm_epsilon is None
            else LayerNorm(features, epsilon=norm_epsilon, dtype=dtype, rngs=rngs)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, height, width, in_features]` -> `[batch, rows, columns, features]`."""
        x = self.proj(x)
        return x if self.norm is None else self.norm(x)


class Mlp(nnx.Module):
    """Linear, GELU, dropout, linear, dropout over the last axis.

    Args:
      features: size of the last axis.
      hidden: size of the hidden layer.
      drop_rate: rate of both dropouts.
      dtype: compute dtype.
      kernel_init: initialiser of both kernels.
      bias_init: initialiser of both biases.
      rngs: source of the initial weights.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        drop_rate: float,
        dtype: Any,
        kernel_init: nnx.Initializer = normal_002,
        bias_init: nnx.Initializer = nnx.initializers.zeros,
        rngs: nnx.Rngs,
    ):
        init = dict(kernel_init=kernel_init, bias_init=bias_init)
        self.fc1 = nnx.Linear(features, hidden, dtype=dtype, rngs=rngs, **init)
        self.fc2 = nnx.Linear(hidden, features, dtype=dtype, rngs=rngs, **init)
        self.drop = Dropout(drop_rate)

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        key1, key2 = split_key(key, 2)
        x = self.drop(gelu(self.fc1(x)), key1)
        return self.drop(self.fc2(x), key2)


class TransformerBlock(nnx.Module):
    """A pre-norm block: attention and MLP, each in a residual branch with stochastic depth.

    Args:
      attention: called as `attention(x, key)`.
      features: channels.
      mlp_ratio: hidden channels of the MLP over `features`.
      drop_rate: dropout in the MLP.
      drop_path_rate: stochastic depth of both branches, each with a key of its own.
      dtype: compute dtype.
      rngs: source of the initial weights.
    """

    def __init__(
        self,
        attention: nnx.Module,
        features: int,
        mlp_ratio: float,
        *,
        drop_rate: float,
        drop_path_rate: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.norm1 = LayerNorm(features, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.attn = attention
        self.norm2 = LayerNorm(features, epsilon=1e-6, dtype=dtype, rngs=rngs)
        hidden = int(features * mlp_ratio)
        self.mlp = Mlp(features, hidden, drop_rate=drop_rate, dtype=dtype, rngs=rngs)
        self.drop_path_rate = drop_path_rate

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """`[batch, *positions, features]` -> the same shape."""
        attn_key, attn_path, mlp_key, mlp_path = split_key(key, 4)
        x = x + drop_path(self.attn(self.norm1(x), attn_key), self.drop_path_rate, attn_path)
        return x + drop_path(self.mlp(self.norm2(x), mlp_key), self.drop_path_rate, mlp_path)
