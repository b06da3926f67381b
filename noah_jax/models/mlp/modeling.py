"""The MLP family in timm's layout.

It is Mixer (Tolstikhin et al., 2021) and its gated variant gMixer, ResMLP (Touvron et al., 2021)
and gMLP (Liu et al., 2021). All cut the image into patches. Every block mixes first over the
positions and then over the channels (gMLP does both in one).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from noah_jax.errors import InputError
from noah_jax.heads.registry import apply_head, make_head
from noah_jax.heads.spec import HeadInit, HeadSpec
from noah_jax.models.backbone import BackboneSettings
from noah_jax.models.blocks import (
    PatchEmbed,
    any_rate,
    check_image_size,
    patch_grid,
    run_blocks,
    training_key,
)
from noah_jax.nn.dropout import Key, split_key
from noah_jax.nn.gelu import gelu
from noah_jax.nn.layers import Dropout, LayerNorm, drop_path
from noah_jax.nn.mlp import Mlp
from noah_jax.nn.remat import Layer

xavier = nnx.initializers.xavier_uniform()
tiny = nnx.initializers.normal(1e-6)
# NOAH's kernels are [head_num, in_features, num_classes]. The fan-in is what one block sees, as in
# the original's grouped convolution.
noah_lecun_normal = nnx.initializers.lecun_normal(in_axis=1, out_axis=2, batch_axis=0)

layer_norm = functools.partial(LayerNorm, epsilon=1e-6)
mlp_layer = functools.partial(Mlp, kernel_init=xavier, bias_init=tiny)


def gated(init: nnx.Initializer, gate_init: nnx.Initializer) -> nnx.Initializer:
    """An initialiser that draws the second half of the outputs, the gate, from `gate_init`."""

    def initialise(
        key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32, **_: Any
    ) -> jax.Array:
        key, gate_key = jax.random.split(key)
        half = shape[-1] // 2
        # All outputs are drawn, because the fan-out of `init` counts both halves.
        values = init(key, shape, dtype)[..., :half]
        gate = gate_init(gate_key, (*shape[:-1], shape[-1] - half), dtype)
        return jnp.concatenate([values, gate], axis=-1)

    return initialise


def half(hidden: int) -> int:
    """Half of the hidden channels, if the other half is a gate.

    Raises:
      InputError: If they are odd.
    """
    if hidden % 2:
        raise InputError(
            f"{hidden} hidden channels cannot be halved for a gate: give a ratio that makes them"
            " even"
        )
    return hidden // 2


def over_tokens(linear: nnx.Linear, x: jax.Array) -> jax.Array:
    """Applies `linear` over the tokens of `[batch, tokens, channels]`, without a transpose."""
    assert linear.bias is not None
    x, kernel, bias = (v.astype(linear.dtype) for v in (x, linear.kernel[...], linear.bias[...]))
    return jnp.einsum("btc,ts->bsc", x, kernel) + bias[:, None]


class GluMlp(nnx.Module):
    """gMixer's MLP: linear, gated linear unit with SiLU, dropout, linear, dropout."""

    def __init__(self, features: int, hidden: int, *, drop_rate: float, dtype: Any, rngs: nnx.Rngs):
        self.fc1 = nnx.Linear(
            features,
            hidden,
            kernel_init=gated(xavier, tiny),
            bias_init=gated(tiny, nnx.initializers.ones),
            dtype=dtype,
            rngs=rngs,
        )
        self.fc2 = nnx.Linear(
            half(hidden), features, kernel_init=xavier, bias_init=tiny, dtype=dtype, rngs=rngs
        )
        self.drop = Dropout(drop_rate)

    def __call__(self, x: jax.Array, key: Key | None) -> jax.Array:
        key1, key2 = split_key(key, 2)
        x, gate = jnp.split(self.fc1(x), 2, axis=-1)
        x = self.drop(x * nnx.silu(gate), key1)
        return self.drop(self.fc2(x), key2)


class SpatialGate(nnx.Module):
    """gMLP's gate: the second half of the channels, mixed over the positions, scales the first."""

    def __init__(self, features: int, tokens: int, *, dtype: Any, rngs: nnx.Rngs):
        # This norm has PyTorch's default epsilon, unlike the others.
        self.norm = LayerNorm(features // 2, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.proj = nnx.Linear(
            tokens,
            tokens,
            kernel_init=tiny,
            bias_init=nnx.initializers.ones,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, tokens, features]` -> `[batch, tokens, features / 2]`."""
        x, gate = jnp.split(x, 2, axis=-1)
        return x * over_tokens(self.proj, self.norm(gate))


class GatedMlp(nnx.Module):
    """gMLP's MLP: linear, GELU, dropout, spatial gate, linear, dropout."""

    def __init__(
        self,
        features: int,
        hidden: int,
        tokens: int,
        *,
        drop_rate: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        linear = functools.partial(
            nnx.Linear, kernel_init=xavier, bias_init=tiny, dtype=dtype, rngs=rngs
        )
        self.fc1 = linear(features, hidden)
        self.gate = SpatialGate(hidden, tokens, dtype=dtype, rngs=rngs)
        self.fc2 = linear(half(hidden), features)
        self.drop = Dropout(drop_rate)

    def __call__(self, x: jax.Array, key: Key | None) -> jax.Array:
        key1, key2 = split_key(key, 2)
        x = self.drop(gelu(self.fc1(x)), key1)
        x = self.fc2(self.gate(x))
        return self.drop(x, key2)


class Affine(nnx.Module):
    """ResMLP's scale and shift per channel, with the rank they have in PyTorch."""

    def __init__(self, features: int, *, dtype: Any, rngs: nnx.Rngs):
        del rngs  # the initial weights are constants
        self.alpha = nnx.Param(jnp.ones((1, 1, features), jnp.float32))
        self.beta = nnx.Param(jnp.zeros((1, 1, features), jnp.float32))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, tokens, features]` -> the same shape."""
        return x * self.alpha[...].astype(self.dtype) + self.beta[...].astype(self.dtype)


# A block is made by `block(features, tokens, drop_rate=..., drop_path_rate=..., dtype=...,
# rngs=..., channel_ratio=...)` and maps `[batch, tokens, features]` and a key to the same shape.


class MixerBlock(nnx.Module):
    """An MLP over the tokens and an MLP over the channels, each after a norm.

    Args:
      channel_ratio: Hidden size of the channel MLP over `features`.
      token_ratio: Hidden size of the token MLP over `features`.
      mlp: Makes the MLPs: `mlp_layer`, or `GluMlp` for gMixer.
    """

    def __init__(
        self,
        features: int,
        tokens: int,
        *,
        channel_ratio: float,
        token_ratio: float,
        mlp: Callable[..., Mlp | GluMlp],
        drop_rate: float,
        drop_path_rate: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        mlp = functools.partial(mlp, drop_rate=drop_rate, dtype=dtype, rngs=rngs)
        self.norm1 = layer_norm(features, dtype=dtype, rngs=rngs)
        self.mlp_tokens = mlp(tokens, int(features * token_ratio))
        self.norm2 = layer_norm(features, dtype=dtype, rngs=rngs)
        self.mlp_channels = mlp(features, int(features * channel_ratio))
        self.drop_path_rate = drop_path_rate

    def __call__(self, x: jax.Array, key: Key | None) -> jax.Array:
        tokens_key, tokens_path, channels_key, channels_path = split_key(key, 4)
        y = self.mlp_tokens(self.norm1(x).swapaxes(1, 2), tokens_key).swapaxes(1, 2)
        x = x + drop_path(y, self.drop_path_rate, tokens_path)
        y = self.mlp_channels(self.norm2(x), channels_key)
        return x + drop_path(y, self.drop_path_rate, channels_path)


class ResBlock(nnx.Module):
    """ResMLP's block: a linear over the tokens and an MLP over the channels.

    Each comes after an affine and is scaled per channel.

    Args:
      channel_ratio: Hidden size of the MLP over `features`.
      layer_scale: Initial value of the scales, `ls1` and `ls2`.
    """

    def __init__(
        self,
        features: int,
        tokens: int,
        *,
        channel_ratio: float,
        layer_scale: float,
        drop_rate: float,
        drop_path_rate: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.norm1 = Affine(features, dtype=dtype, rngs=rngs)
        self.linear_tokens = nnx.Linear(tokens, tokens, kernel_init=xavier, dtype=dtype, rngs=rngs)
        self.norm2 = Affine(features, dtype=dtype, rngs=rngs)
        hidden = int(features * channel_ratio)
        self.mlp_channels = mlp_layer(features, hidden, drop_rate=drop_rate, dtype=dtype, rngs=rngs)
        self.ls1 = nnx.Param(jnp.full(features, layer_scale, jnp.float32))
        self.ls2 = nnx.Param(jnp.full(features, layer_scale, jnp.float32))
        self.drop_path_rate = drop_path_rate

    def __call__(self, x: jax.Array, key: Key | None) -> jax.Array:
        tokens_path, channels_key, channels_path = split_key(key, 3)
        y = over_tokens(self.linear_tokens, self.norm1(x))
        x = x + drop_path(y * self.ls1[...].astype(y.dtype), self.drop_path_rate, tokens_path)
        y = self.mlp_channels(self.norm2(x), channels_key)
        return x + drop_path(y * self.ls2[...].astype(y.dtype), self.drop_path_rate, channels_path)


class SpatialGatingBlock(nnx.Module):
    """gMLP's block: one MLP with the spatial gate in it, after a norm.

    Args:
      channel_ratio: Hidden size of the MLP over `features`.
    """

    def __init__(
        self,
        features: int,
        tokens: int,
        *,
        channel_ratio: float,
        drop_rate: float,
        drop_path_rate: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.norm = layer_norm(features, dtype=dtype, rngs=rngs)
        hidden = int(features * channel_ratio)
        self.mlp_channels = GatedMlp(
            features, hidden, tokens, drop_rate=drop_rate, dtype=dtype, rngs=rngs
        )
        self.drop_path_rate = drop_path_rate

    def __call__(self, x: jax.Array, key: Key | None) -> jax.Array:
        mlp_key, path_key = split_key(key, 2)
        y = self.mlp_channels(self.norm(x), mlp_key)
        return x + drop_path(y, self.drop_path_rate, path_key)


class MlpMixer(nnx.Module):
    """A model of the MLP family with any head.

    Images must have the size in `settings`, whose sides are multiples of the patch, because the
    sizes of the token layers come from it.

    Args:
      head: Which head.
      settings: Image size, rematerialisation and compute dtype.
      block: Makes a block, with the variant's own arguments bound.
      norm: Makes the final norm.
      width: Channels.
      depth: Number of blocks.
      patch_size: Height and width of a patch in pixels.
      drop_rate: Dropout rate in the MLPs.
      drop_path_rate: Rate of stochastic depth, the same in every block.
      rngs: Source of the initial weights.
      **ratios: The block's hidden sizes over `width`.

    Raises:
      InputError: If a size or a rate does not fit.
    """

    def __init__(
        self,
        head: HeadSpec,
        settings: BackboneSettings,
        *,
        block: Callable[..., Layer],
        norm: Callable[..., LayerNorm | Affine],
        width: int,
        depth: int,
        patch_size: int,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        rngs: nnx.Rngs,
        **ratios: float,
    ):
        self.needs_key = any_rate(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        self.image_size = settings.image_size
        self.grid = patch_grid(settings.image_size, patch_size)
        self.remat = settings.remat
        dtype = settings.dtype

        self.stem = PatchEmbed(
            3,
            width,
            patch_size,
            dtype=dtype,
            kernel_init=nnx.initializers.lecun_normal(),
            bias_init=nnx.initializers.zeros,
            rngs=rngs,
        )
        self.blocks = nnx.List(
            block(
                width,
                self.grid[0] * self.grid[1],
                drop_rate=drop_rate,
                drop_path_rate=drop_path_rate,
                dtype=dtype,
                rngs=rngs,
                **ratios,
            )
            for _ in range(depth)
        )
        self.norm = norm(width, dtype=dtype, rngs=rngs)
        self.head = make_head(
            head,
            width,
            init={"linear": HeadInit(nnx.initializers.zeros), "noah": HeadInit(noah_lecun_normal)},
            rngs=rngs,
        )

    def features(self, images: jax.Array, *, train: bool, key: Key | None = None) -> jax.Array:
        """Returns the last feature map, `[batch, rows, columns, channels]`."""
        check_image_size(images, self.image_size)
        key = training_key(key, train=train, needed=self.needs_key)
        x = self.stem(images)
        shape = x.shape
        x = x.reshape(shape[0], -1, shape[-1])
        x = run_blocks(self.blocks, x, key, remat=self.remat)
        return self.norm(x).reshape(shape)

    def __call__(self, images: jax.Array, *, train: bool, key: Key | None = None) -> jax.Array:
        features_key, head_key = split_key(key, 2)
        features = self.features(images, train=train, key=features_key)
        return apply_head(self.head, features, train=train, key=head_key)
