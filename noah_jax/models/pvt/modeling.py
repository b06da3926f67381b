"""Pyramid Vision Transformer, version 1 (Wang et al., 2021), the authors' layout.

Four stages of transformer blocks on ever coarser maps; keys and values come from a map
reduced by a strided convolution. With a linear head a class token joins at the last stage.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from noah_jax.heads.registry import apply_head, make_head
from noah_jax.heads.spec import HeadInit, HeadSpec
from noah_jax.models.blocks import (
    PatchEmbed,
    TransformerBlock,
    check_heads,
    check_rates,
    class_token,
    linear_rates,
    normal_002,
    patch_grid,
    run_blocks,
    split_key,
    training_key,
)
from noah_jax.nn.attention import attend, project
from noah_jax.nn.layers import Dropout, LayerNorm, conv, torch_default_bias, torch_default_kernel

PATCH_SIZES = (4, 2, 2, 2)
STRIDE = 32  # pixels a position of the last map stands for
# PyTorch's default, in patch embeddings and after the reduction; the other LayerNorms have 1e-6.
EPSILON = 1e-5


class SpatialReductionAttention(nnx.Module):
    """Multi-head attention whose keys and values come from a map reduced `reduction` times."""

    def __init__(self, features, num_heads, reduction, *, drop_rate, dtype, rngs):
        init = dict(kernel_init=normal_002, dtype=dtype, rngs=rngs)
        self.q = nnx.Linear(features, features, **init)
        self.kv = nnx.Linear(features, 2 * features, **init)
        self.proj = nnx.Linear(features, features, **init)
        self.drop = Dropout(drop_rate)
        self.num_heads = num_heads
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

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """`[batch, *positions, features]` -> the same shape; a map where there is a reduction."""
        batch = x.shape[0]
        reduced = self.norm(self.sr(x)) if self.reduction > 1 else x
        queries, others = (y.reshape(batch, -1, y.shape[-1]) for y in (x, reduced))
        (query,) = project(self.q, queries, 1, self.num_heads)
        out = attend(query, *project(self.kv, others, 2, self.num_heads))
        return self.drop(self.proj(out.reshape(x.shape)), key)


class PVT(nnx.Module):
    """PVT with any head.

    Args:
      head: which head; "linear" comes with a class token.
      widths: channels of the four stages.
      num_heads: attention heads of the stages.
      depths: blocks of the stages.
      mlp_ratios: hidden channels of the stages' MLPs over their `widths`.
      reductions: height and width over those of the map that keys and values come from.
      image_size: `(height, width)` in pixels the position embeddings are made for, multiples
        of 32. Images of any other size that divides by 32 work too: the embeddings are
        interpolated.
      drop_rate: dropout after the position embeddings, the attention and in the MLPs.
      drop_path_rate: stochastic depth of the last block; it rises linearly from 0.
      remat: whether the backward pass computes the blocks' insides again to save memory.
      batch_norm_group: unused: there is no BatchNorm.
      dtype: compute dtype.
      rngs: source of the initial weights.
    """

    def __init__(
        self,
        head: HeadSpec,
        *,
        widths: tuple[int, int, int, int],
        num_heads: tuple[int, int, int, int],
        depths: tuple[int, int, int, int],
        mlp_ratios: tuple[float, float, float, float],
        reductions: tuple[int, int, int, int],
        image_size: tuple[int, int],
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        remat: bool = False,
        batch_norm_group: int | None = None,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        del batch_norm_group
        check_rates(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        rows, columns = patch_grid(image_size, STRIDE)
        self.grids = tuple((rows * scale, columns * scale) for scale in (8, 4, 2, 1))
        self.drop_rate = drop_rate
        self.drop_path_rate = drop_path_rate
        self.remat = remat

        self.cls_token = class_token(widths[3], rngs) if head.kind == "linear" else None
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

    def _encode(
        self, images: jax.Array, *, train: bool, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """The last map, `[batch, height/32, width/32, channels]`, and the class token, if any."""
        patch_grid(images.shape[1:3], STRIDE, "the images' size")
        key = training_key(
            key, train=train, drop_rate=self.drop_rate, drop_path_rate=self.drop_path_rate
        )
        x = images
        for stage, stage_key in enumerate(split_key(key, 4)):
            pos_key, blocks_key = split_key(stage_key, 2)
            x = getattr(self, f"patch_embed{stage + 1}")(x)
            pos_embed = getattr(self, f"pos_embed{stage + 1}")[...]
            if stage == 3 and self.cls_token is not None:
                x = self._join_token(x, pos_embed)
            else:
                position = resize_positions(pos_embed, self.grids[stage], x.shape[1:3])
                x = x + position.astype(x.dtype)
            x = self.pos_drop(x, pos_key)
            blocks = getattr(self, f"block{stage + 1}")
            x = run_blocks(blocks, x, blocks_key, remat=self.remat)
        x = self.norm(x)
        if self.cls_token is None:
            return x, None
        rows, columns = (pixels // STRIDE for pixels in images.shape[1:3])
        return x[:, 1:].reshape(x.shape[0], rows, columns, -1), x[:, 0]

    def features(
        self, images: jax.Array, *, train: bool, key: jax.Array | None = None
    ) -> jax.Array:
        """The last feature map, `[batch, height/32, width/32, channels]`."""
        return self._encode(images, train=train, key=key)[0]

    def __call__(
        self, images: jax.Array, *, train: bool, key: jax.Array | None = None
    ) -> jax.Array:
        features_key, head_key = split_key(key, 2)
        features, token = self._encode(images, train=train, key=features_key)
        if token is not None and self.head is not None:
            features = token
        return apply_head(self.head, features, train=train, key=head_key)

    def _join_token(self, x: jax.Array, pos_embed: jax.Array) -> jax.Array:
        """The class token and the map as positioned tokens, `[batch, 1 + positions, channels]`."""
        batch, rows, columns, width = x.shape
        token = (self.cls_token[...] + pos_embed[:, :1]).astype(x.dtype)
        token = jnp.broadcast_to(token, (batch, 1, width))
        position = resize_positions(pos_embed[:, 1:], self.grids[3], (rows, columns))
        x = x + position.astype(x.dtype)
        return jnp.concatenate([token, x.reshape(batch, -1, width)], axis=1)


def resize_positions(
    pos_embed: jax.Array, grid: tuple[int, int], size: tuple[int, int]
) -> jax.Array:
    """Position embeddings `[1, tokens, channels]` of a grid as a map `[1, *size, channels]`.

    PyTorch's bilinear interpolation with `align_corners=False`, which never antialiases.
    (`jax.image.resize` does the same by matrix products, which a compute dtype would blur.)
    """
    x = pos_embed.reshape(1, *grid, -1)
    for axis, (old, new) in enumerate(zip(grid, size, strict=True), start=1):
        if old == new:
            continue
        # PyTorch's rounding: a float32 scale, then one fused multiply-add.
        scale = float(np.float32(old / new))
        position = np.float32(scale * (np.arange(new) + 0.5) - 0.5).clip(0, old - 1)
        low = position.astype(int)
        high = np.minimum(low + 1, old - 1)
        share = np.float32(position - low)
        share = np.expand_dims(share, [i for i in range(x.ndim) if i != axis])
        x = jnp.take(x, low, axis) * (1 - share) + jnp.take(x, high, axis) * share
    return x
