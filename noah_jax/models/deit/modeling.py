"""DeiT (Touvron et al., 2021), the plain vision transformer, in timm's layout.

With a linear head a class token carries the image. With any other head there is no class token
unless it is asked for, and the head gets all other tokens as the map they were cut from.
"""

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
    check_heads,
    check_image_size,
    normal_002,
    optional_class_token,
    patch_grid,
    run_blocks,
    training_key,
    vit_blocks,
)
from noah_jax.nn.dropout import Key, split_key
from noah_jax.nn.layers import Dropout, LayerNorm

PRE_LOGITS_WIDTH = 192


class DeiT(nnx.Module):
    """DeiT with any head.

    Images must have the size in `settings`, whose sides are multiples of the patch.

    Args:
      head: Which head; "linear" comes with a class token, which it reads.
      settings: Image size, rematerialisation and compute dtype.
      width: Channels.
      num_heads: Attention heads.
      depth: Number of blocks.
      patch_size: Height and width of a patch in pixels.
      mlp_ratio: Hidden channels of the MLPs over `width`.
      pre_logits: Whether a linear layer and tanh precede the head. The layer has 192 channels, or
        the number given. `None` is the original's choice: they are there if `width` is below 192.
        (The published parameter counts of the x0.5 and x0.75 models are those without, so a
        checkpoint may lack them.)
      class_token: Whether the tokens have a class token in front. `None` is the original's choice:
        with a linear head only. Without it, a linear head reads the mean of the map.
      drop_rate: Dropout rate after the position embedding, after the attention and in the MLPs.
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
        width: int,
        num_heads: int,
        depth: int,
        patch_size: int,
        mlp_ratio: float,
        pre_logits: bool | int | None = None,
        class_token: bool | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.needs_key = any_rate(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        check_heads(width, num_heads)
        self.image_size = settings.image_size
        self.grid = patch_grid(settings.image_size, patch_size)
        self.remat = settings.remat
        dtype = settings.dtype

        self.cls_token = optional_class_token(class_token, head, width, rngs)
        self.head_reads_token = head.kind == "linear" and not head.features_only
        tokens = self.grid[0] * self.grid[1] + (self.cls_token is not None)
        self.pos_embed = nnx.Param(normal_002(rngs.params(), (1, tokens, width), jnp.float32))
        self.pos_drop = Dropout(drop_rate)
        self.patch_embed = PatchEmbed(3, width, patch_size, dtype=dtype, rngs=rngs)
        self.blocks = vit_blocks(
            width,
            num_heads,
            depth,
            mlp_ratio,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = LayerNorm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        if pre_logits is None:
            pre_logits = width < PRE_LOGITS_WIDTH
        if not isinstance(pre_logits, int) or pre_logits < 0:
            raise InputError(f"pre_logits must be true, false or channels, got {pre_logits!r}")
        features = (PRE_LOGITS_WIDTH if pre_logits is True else pre_logits) or width
        self.pre_logits = (
            nnx.Linear(width, features, kernel_init=normal_002, dtype=dtype, rngs=rngs)
            if pre_logits
            else None
        )
        self.head = make_head(head, features, init={"linear": HeadInit(normal_002)}, rngs=rngs)

    @property
    def position_grids(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of each position embedding, by its name."""
        return {"pos_embed": self.grid}

    def _tokens(self, images: jax.Array, *, train: bool, key: Key | None) -> jax.Array:
        """`[batch, tokens, channels]`; the class token, if there is one, is the first."""
        check_image_size(images, self.image_size)
        key = training_key(key, train=train, needed=self.needs_key)
        pos_key, blocks_key = split_key(key, 2)
        x = self.patch_embed(images)
        batch, _, _, width = x.shape
        x = x.reshape(batch, -1, width)
        if self.cls_token is not None:
            token = jnp.broadcast_to(self.cls_token[...].astype(x.dtype), (batch, 1, width))
            x = jnp.concatenate([token, x], axis=1)
        x = x + self.pos_embed[...].astype(x.dtype)
        x = self.pos_drop(x, pos_key)
        x = run_blocks(self.blocks, x, blocks_key, remat=self.remat)
        x = self.norm(x)
        return x if self.pre_logits is None else jnp.tanh(self.pre_logits(x))

    def _map(self, tokens: jax.Array) -> jax.Array:
        patches = tokens if self.cls_token is None else tokens[:, 1:]
        return patches.reshape(tokens.shape[0], *self.grid, -1)

    def encode(
        self, images: jax.Array, *, train: bool, key: Key | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """The last feature map, `[batch, rows, columns, channels]`, and the class token, if any."""
        tokens = self._tokens(images, train=train, key=key)
        return self._map(tokens), None if self.cls_token is None else tokens[:, 0]

    def features(self, images: jax.Array, *, train: bool, key: Key | None = None) -> jax.Array:
        """The last feature map, `[batch, rows, columns, channels]`, without the class token."""
        return self.encode(images, train=train, key=key)[0]

    def __call__(self, images: jax.Array, *, train: bool, key: Key | None = None) -> jax.Array:
        features_key, head_key = split_key(key, 2)
        features, token = self.encode(images, train=train, key=features_key)
        features = token if token is not None and self.head_reads_token else features
        return apply_head(self.head, features, train=train, key=head_key)
