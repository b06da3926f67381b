"""Pyramid Vision Transformer, version 1 (Wang et al., 2021), in its authors' layout.

Four stages of transformer blocks work on ever coarser maps. Keys and values come from a map that a
strided convolution has reduced. With a linear head a class token joins at the last stage.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from noah_jax.heads.registry import apply_head, make_head
from noah_jax.heads.spec import HeadInit, HeadSpec
from noah_jax.models.backbone import BackboneSettings
from noah_jax.models.blocks import (
    PatchEmbed,
    TransformerBlock,
    any_rate,
    check_heads,
    linear_rates,
    normal_002,
    optional_class_token,
    patch_grid,
    run_blocks,
    training_key,
)
from noah_jax.nn.attention import attend, project
from noah_jax.nn.dropout import Key, split_key
from noah_jax.nn.layers import Dropout, LayerNorm, conv, torch_default_bias, torch_default_kernel

PATCH_SIZES = (4, 2, 2, 2)
STRIDE = 32  # of the last map, in pixels
# Epsilon in patch embeddings and after the reduction, PyTorch's default. The other LayerNorms have
# 1e-6.
EPSILON = 1e-5


class SpatialReductionAttention(nnx.Module):
    """Multi-head attention whose keys and values come from a map reduced `reduction` times."""

    def __init__(
        self,
        features: int,
        num_heads: int,
        reduction: int,
        *,
        drop_rate: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        linear = functools.partial(nnx.Linear, kernel_init=normal_002, dtype=dtype, rngs=rngs)
        self.q = linear(features, features)
        self.kv = linear(features, 2 * features)
        self.proj = linear(features, features)
        self.drop = Dropout(drop_rate)
        self.num_heads = num_heads
        self.implementation = "auto"
        self.reduction = reduction
        if reduction > 1:
            self.sr = conv(
                features,
                features,
                reduction,
                stride=reduction,
                padding=0,
                use_bias=True,
                dtype=dtype,
                kernel_init=torch_default_kernel(),
                bias_init=torch_default_bias(features * reduction**2),
                rngs=rngs,
            )
            self.norm = LayerNorm(features, epsilon=EPSILON, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, key: Key | None) -> jax.Array:
        """`[batch, *positions, features]` -> the same shape; with a reduction it must be a map."""
        batch = x.shape[0]
        reduced = self.norm(self.sr(x)) if self.reduction > 1 else x
        queries, others = (y.reshape(batch, -1, y.shape[-1]) for y in (x, reduced))
        (query,) = project(self.q, queries, 1, self.num_heads)
        keys_values = project(self.kv, others, 2, self.num_heads)
        out = attend(query, *keys_values, implementation=self.implementation)
        return self.drop(self.proj(out.reshape(x.shape)), key)


class PVT(nnx.Module):
    """PVT with any head.

    The position embeddings are made for the image size in `settings`, whose sides are multiples
    of 32. Images of any other size that divides by 32 work too: the embeddings are interpolated.

    Args:
      head: Which head; "linear" comes with a class token.
      settings: Image size, rematerialisation and compute dtype.
      widths: Channels of the four stages.
      num_heads: Attention heads of the stages.
      depths: Blocks of the stages.
      mlp_ratios: Hidden channels of the stages' MLPs over their `widths`.
      reductions: Height and width over those of the map that keys and values come from.
      class_token: Whether a class token joins the last stage's. `None` is the original's choice:
        with a linear head only. Without it, a linear head reads the mean of the map.
      drop_rate: Dropout rate after the position embeddings, after the attention and in the MLPs.
      drop_path_rate: Rate of stochastic depth in the last block; it rises linearly from 0.
      rngs: Source of the initial weights.

    Raises:
      InputError: If a size or a rate does not fit.
    """

    def __init__(
        self,
        head: HeadSpec,
        settings: BackboneSettings,
        *,
        widths: tuple[int, int, int, int],
        num_heads: tuple[int, int, int, int],
        depths: tuple[int, int, int, int],
        mlp_ratios: tuple[float, float, float, float],
        reductions: tuple[int, int, int, int],
        class_token: bool | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.needs_key = any_rate(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        rows, columns = patch_grid(settings.image_size, STRIDE)
        self.grids = tuple((rows * scale, columns * scale) for scale in (8, 4, 2, 1))
        self.remat = settings.remat
        dtype = settings.dtype

        self.cls_token = optional_class_token(class_token, head, widths[3], rngs)
        self.head_reads_token = head.kind == "linear" and not head.features_only
        self.pos_drop = Dropout(drop_rate)
        rates = iter(linear_rates(drop_path_rate, sum(depths)))
        in_features = 3
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            check_heads(width, num_heads[stage])
            patch_embed = PatchEmbed(
                in_features,
                width,
                PATCH_SIZES[stage],
                norm_epsilon=EPSILON,
                dtype=dtype,
                rngs=rngs,
            )
            tokens = self.grids[stage][0] * self.grids[stage][1]
            tokens += stage == 3 and self.cls_token is not None
            pos_embed = nnx.Param(normal_002(rngs.params(), (1, tokens, width), jnp.float32))
            blocks = nnx.List(
                TransformerBlock(
                    SpatialReductionAttention(
                        width,
                        num_heads[stage],
                        reductions[stage],
                        drop_rate=drop_rate,
                        dtype=dtype,
                        rngs=rngs,
                    ),
                    width,
                    mlp_ratios[stage],
                    drop_rate=drop_rate,
                    drop_path_rate=next(rates),
                    dtype=dtype,
                    rngs=rngs,
                )
                for _ in range(depth)
            )
            setattr(self, f"patch_embed{stage + 1}", patch_embed)
            setattr(self, f"pos_embed{stage + 1}", pos_embed)
            setattr(self, f"block{stage + 1}", blocks)
            in_features = width
        self.norm = LayerNorm(in_features, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.head = make_head(head, in_features, init={"linear": HeadInit(normal_002)}, rngs=rngs)

    @property
    def position_grids(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of each position embedding, by its name."""
        return {f"pos_embed{stage}": grid for stage, grid in enumerate(self.grids, start=1)}

    def encode(
        self, images: jax.Array, *, train: bool, key: Key | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """The last map, `[batch, height/32, width/32, channels]`, and the class token, if any."""
        _, height, width, _ = images.shape
        rows, columns = patch_grid((height, width), STRIDE, "the images' size")
        key = training_key(key, train=train, needed=self.needs_key)
        x = images
        for stage, stage_key in enumerate(split_key(key, 4)):
            pos_key, blocks_key = split_key(stage_key, 2)
            x = getattr(self, f"patch_embed{stage + 1}")(x)
            pos_embed = getattr(self, f"pos_embed{stage + 1}")[...]
            if stage == 3 and self.cls_token is not None:
                x = self._join_token(self.cls_token[...], x, pos_embed)
            else:
                position = resize_positions(pos_embed, self.grids[stage], x.shape[1:3])
                x = x + position.astype(x.dtype)
            x = self.pos_drop(x, pos_key)
            blocks = getattr(self, f"block{stage + 1}")
            x = run_blocks(blocks, x, blocks_key, remat=self.remat)
        x = self.norm(x)
        if self.cls_token is None:
            return x, None
        return x[:, 1:].reshape(x.shape[0], rows, columns, -1), x[:, 0]

    def features(self, images: jax.Array, *, train: bool, key: Key | None = None) -> jax.Array:
        """Returns the last feature map, `[batch, height/32, width/32, channels]`."""
        return self.encode(images, train=train, key=key)[0]

    def __call__(self, images: jax.Array, *, train: bool, key: Key | None = None) -> jax.Array:
        features_key, head_key = split_key(key, 2)
        features, token = self.encode(images, train=train, key=features_key)
        features = token if token is not None and self.head_reads_token else features
        return apply_head(self.head, features, train=train, key=head_key)

    def _join_token(self, token: jax.Array, x: jax.Array, pos_embed: jax.Array) -> jax.Array:
        """Adds positions to class token and map: `[batch, 1 + positions, channels]`."""
        batch, rows, columns, width = x.shape
        token = (token + pos_embed[:, :1]).astype(x.dtype)
        token = jnp.broadcast_to(token, (batch, 1, width))
        position = resize_positions(pos_embed[:, 1:], self.grids[3], (rows, columns))
        x = x + position.astype(x.dtype)
        return jnp.concatenate([token, x.reshape(batch, -1, width)], axis=1)


def resize_positions(
    pos_embed: jax.Array, grid: tuple[int, int], size: tuple[int, int]
) -> jax.Array:
    """Resizes position embeddings `[1, tokens, channels]` of a grid to `[1, *size, channels]`.

    This is PyTorch's bilinear interpolation with `align_corners=False`, which never antialiases.
    (`jax.image.resize` computes the same with matrix products, whose precision the platform
    chooses.)
    """
    x = pos_embed.reshape(1, *grid, -1)
    for axis, (old, new) in enumerate(zip(grid, size, strict=True), start=1):
        if old == new:
            continue
        # Rounded as in PyTorch: a float32 scale, then one fused multiply-add.
        scale = float(np.float32(old / new))
        position = np.float32(scale * (np.arange(new) + 0.5) - 0.5).clip(0, old - 1)
        low = position.astype(int)
        high = np.minimum(low + 1, old - 1)
        others = [i for i in range(x.ndim) if i != axis]
        fraction = np.expand_dims(np.asarray(position - low, np.float32), others)
        x = jnp.take(x, low, axis) * (1 - fraction) + jnp.take(x, high, axis) * fraction
    return x
