"""Blocks, checks and random keys that DeiT, DINOv2, PVT and the MLP family share.

In these blocks a random key of `None` means evaluation: dropout and stochastic depth are off. The
models turn their mode into such a key once, with `training_key`.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from noah_jax.errors import InputError
from noah_jax.heads.spec import HeadSpec
from noah_jax.nn.arguments import check_flag
from noah_jax.nn.attention import attend, project
from noah_jax.nn.dropout import Key, fold_in, split_key
from noah_jax.nn.layers import (
    Dropout,
    LayerNorm,
    conv,
    drop_path,
    torch_default_bias,
    torch_default_kernel,
)
from noah_jax.nn.mlp import Mlp
from noah_jax.nn.remat import Layer, run_layer

# timm's trunc_normal_(std=0.02) for linears, class token and position embeddings. timm truncates
# at +-2, which is a hundred standard deviations, so it is a plain normal.
normal_002 = nnx.initializers.normal(0.02)


def class_token(features: int, rngs: nnx.Rngs) -> nnx.Param[jax.Array]:
    """Draws a class token, `[1, 1, features]`."""
    return nnx.Param(normal_002(rngs.params(), (1, 1, features), jnp.float32))


def optional_class_token(
    wanted: bool | None, head: HeadSpec, features: int, rngs: nnx.Rngs
) -> nnx.Param[jax.Array] | None:
    """Draws a class token if it is wanted; `None` wants it for a linear head only.

    Raises:
      InputError: If `wanted` is something else.
    """
    if wanted is None:
        wanted = head.kind == "linear"
    return class_token(features, rngs) if check_flag("class_token", wanted) else None


def patch_grid(size: tuple[int, int], patch_size: int, what: str = "image_size") -> tuple[int, int]:
    """Rows and columns of patches in an image of `(height, width)` pixels.

    Raises:
      InputError: If the patches do not tile the image; `what` names the argument to blame.
    """
    if any(pixels % patch_size for pixels in size):
        nearest = tuple(max(1, round(pixels / patch_size)) * patch_size for pixels in size)
        raise InputError(
            f"{what}={size} does not divide into patches of {patch_size} pixels: height and"
            f" width must be multiples of {patch_size}, such as {nearest}"
        )
    return size[0] // patch_size, size[1] // patch_size


def check_image_size(images: jax.Array, image_size: tuple[int, int]) -> None:
    """Raises unless images `[batch, height, width, 3]` have the size that the model is made for."""
    if images.shape[1:3] != image_size:
        height, width = images.shape[1:3]
        raise InputError(
            f"the model was created for images of {image_size[0]}x{image_size[1]} pixels, got"
            f" {height}x{width}: resize them, or create it with image_size=({height}, {width})"
        )


def any_rate(**rates: float) -> bool:
    """Returns whether one of several dropout rates is above zero.

    Raises:
      InputError: If a rate lies outside [0, 1).
    """
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise InputError(f"{name} must lie in [0, 1), got {rate}")
    return any(rates.values())


def check_heads(width: int, num_heads: int) -> None:
    """Raises unless the attention heads divide the channels."""
    if width % num_heads:
        raise InputError(
            f"width {width} does not divide among {num_heads} attention heads: give num_heads too"
        )


def linear_rates(drop_path_rate: float, depth: int) -> list[float]:
    """Rates of stochastic depth for each block, rising linearly from 0 to `drop_path_rate`."""
    return [drop_path_rate * i / max(1, depth - 1) for i in range(depth)]


def training_key(key: Key | None, *, train: bool, needed: bool) -> Key | None:
    """The key for a backbone's blocks: `None` in evaluation, or if nothing in them is random.

    Args:
      key: The key that the backbone was called with.
      train: Whether it trains.
      needed: Whether one of its dropout rates is above zero.

    Raises:
      InputError: If the backbone needs a key to train and there is none.
    """
    if not train or not needed:
        return None
    if key is None:
        raise InputError("training with drop_rate or drop_path_rate needs a random key: pass key=")
    return key


def run_blocks(blocks: Iterable[Layer], x: jax.Array, key: Key | None, *, remat: bool) -> jax.Array:
    """Applies blocks one after another, each as `block(x, key)` with a key of its own.

    Args:
      blocks: The blocks.
      x: Input of the first block.
      key: Random key; `None` in evaluation.
      remat: See `run_layer`.
    """
    for i, block in enumerate(blocks):
        block_key = None if key is None else fold_in(key, i)
        x = run_layer(block, x, block_key, remat=remat)
    return x


class PatchEmbed(nnx.Module):
    """Cuts an image or a map into patches and projects each, as one strided convolution.

    Args:
      in_features: Channels of the input.
      features: Channels of the output.
      patch_size: Height and width of a patch.
      norm_epsilon: Epsilon of a LayerNorm that follows; `None` for none.
      dtype: Compute dtype.
      kernel_init: Initialiser of the kernel; by default PyTorch's.
      bias_init: Initialiser of the bias; by default PyTorch's.
      rngs: Source of the initial weights.
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


class Attention(nnx.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(
        self, features: int, num_heads: int, *, drop_rate: float, dtype: Any, rngs: nnx.Rngs
    ):
        linear = functools.partial(nnx.Linear, kernel_init=normal_002, dtype=dtype, rngs=rngs)
        self.qkv = linear(features, 3 * features)
        self.proj = linear(features, features)
        self.drop = Dropout(drop_rate)
        self.num_heads = num_heads
        self.implementation = "auto"

    def __call__(self, x: jax.Array, key: Key | None) -> jax.Array:
        """`[batch, tokens, features]` -> the same shape."""
        parts = project(self.qkv, x, 3, self.num_heads)
        out = attend(*parts, implementation=self.implementation)
        return self.drop(self.proj(out.reshape(x.shape)), key)


class TransformerBlock(nnx.Module):
    """A pre-norm block: attention and MLP, each in a residual branch with stochastic depth.

    Args:
      attention: The attention, called as `attention(x, key)`.
      features: Channels.
      mlp_ratio: Hidden channels of the MLP over `features`.
      drop_rate: Dropout rate in the MLP.
      drop_path_rate: Rate of stochastic depth in both branches, which have keys of their own.
      layer_scale: Initial value of a learnt factor per channel at the end of both branches (CaiT,
        Touvron et al., 2021); `None` for no factors.
      dtype: Compute dtype.
      rngs: Source of the initial weights.
    """

    def __init__(
        self,
        attention: Callable[[jax.Array, Key | None], jax.Array],
        features: int,
        mlp_ratio: float,
        *,
        drop_rate: float,
        drop_path_rate: float,
        layer_scale: float | None = None,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.ls1, self.ls2 = (
            None if layer_scale is None else nnx.Param(jnp.full(features, layer_scale, jnp.float32))
            for _ in range(2)
        )
        self.norm1 = LayerNorm(features, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.attn = attention
        self.norm2 = LayerNorm(features, epsilon=1e-6, dtype=dtype, rngs=rngs)
        hidden = int(features * mlp_ratio)
        self.mlp = Mlp(
            features,
            hidden,
            drop_rate=drop_rate,
            dtype=dtype,
            kernel_init=normal_002,
            rngs=rngs,
        )
        self.drop_path_rate = drop_path_rate

    def __call__(self, x: jax.Array, key: Key | None) -> jax.Array:
        """`[batch, *positions, features]` -> the same shape."""
        attn_key, attn_path, mlp_key, mlp_path = split_key(key, 4)
        y = _scaled(self.attn(self.norm1(x), attn_key), self.ls1)
        x = x + drop_path(y, self.drop_path_rate, attn_path)
        y = _scaled(self.mlp(self.norm2(x), mlp_key), self.ls2)
        return x + drop_path(y, self.drop_path_rate, mlp_path)


def _scaled(x: jax.Array, factors: nnx.Param[jax.Array] | None) -> jax.Array:
    return x if factors is None else x * factors[...].astype(x.dtype)


def vit_blocks(
    width: int,
    num_heads: int,
    depth: int,
    mlp_ratio: float,
    *,
    drop_rate: float,
    drop_path_rate: float,
    layer_scale: float | None = None,
    dtype: Any,
    rngs: nnx.Rngs,
) -> nnx.List:
    """Makes the blocks of a plain vision transformer.

    Args:
      width: Channels.
      num_heads: Attention heads.
      depth: Number of blocks.
      mlp_ratio: Hidden channels of the MLPs over `width`.
      drop_rate: Dropout rate after the attention and in the MLPs.
      drop_path_rate: Rate of stochastic depth in the last block; it rises linearly from 0.
      layer_scale: See `TransformerBlock`.
      dtype: Compute dtype.
      rngs: Source of the initial weights.
    """
    return nnx.List(
        TransformerBlock(
            Attention(width, num_heads, drop_rate=drop_rate, dtype=dtype, rngs=rngs),
            width,
            mlp_ratio,
            drop_rate=drop_rate,
            drop_path_rate=rate,
            layer_scale=layer_scale,
            dtype=dtype,
            rngs=rngs,
        )
        for rate in linear_rates(drop_path_rate, depth)
    )
