"""DINOv2's vision transformers (Oquab et al., 2023), in timm's layout.

They are plain vision transformers with layer scale, some with register tokens (Darcet et al.,
2023). A class token, and the registers, see the patches in every block, whatever the head: the
pretrained weights need them. A linear head reads the class token after the final norm, as timm's
models with `num_classes` do. (The linear classifiers that DINOv2's authors publish read the mean of
the patches beside it, and are not these.) Any other head gets the patches after the final norm as
the map they were cut from.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from noah_jax.heads.registry import apply_head, make_head
from noah_jax.heads.spec import HeadInit, HeadSpec
from noah_jax.models.backbone import BackboneSettings
from noah_jax.models.blocks import (
    PatchEmbed,
    any_rate,
    check_heads,
    normal_002,
    patch_grid,
    run_blocks,
    training_key,
    vit_blocks,
)
from noah_jax.models.positions import bicubic_weights
from noah_jax.nn.arguments import check_count
from noah_jax.nn.dropout import Key, split_key
from noah_jax.nn.layers import Dropout, LayerNorm

LAYER_SCALE = 1e-5  # where training starts, as in the paper and in timm

_tiny = nnx.initializers.normal(1e-6)


class DinoV2(nnx.Module):
    """DINOv2's vision transformer with any head.

    The position embeddings are made for the image size in `settings`, whose sides are multiples
    of the patch. Images of any other size that divides by the patch work too: the embeddings are
    interpolated as timm does it (bicubic, antialiased). DINOv2's own code does the same where there
    are registers; without them it neither antialiases nor meets the grid's corners exactly.

    Args:
      head: Which head; "linear" reads the class token.
      settings: Image size, rematerialisation and compute dtype.
      width: Channels.
      num_heads: Attention heads.
      depth: Number of blocks.
      patch_size: Height and width of a patch in pixels.
      mlp_ratio: Hidden channels of the MLPs over `width`.
      registers: Number of register tokens; `None` for none. Only without registers the class token
        has a position embedding.
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
        registers: int | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.needs_key = any_rate(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        check_heads(width, num_heads)
        if registers is not None:
            registers = check_count("registers", registers)
        self.patch_size = patch_size
        self.grid = patch_grid(settings.image_size, patch_size)
        self.remat = settings.remat
        dtype = settings.dtype

        def draw(init: nnx.Initializer, tokens: int) -> nnx.Param[jax.Array]:
            return nnx.Param(init(rngs.params(), (1, tokens, width), jnp.float32))

        self.cls_token = draw(_tiny, 1)
        self.reg_token = draw(_tiny, registers) if registers else None
        patches = self.grid[0] * self.grid[1]
        self.pos_embed = draw(normal_002, patches if registers else 1 + patches)
        self.pos_drop = Dropout(drop_rate)
        self.patch_embed = PatchEmbed(3, width, patch_size, dtype=dtype, rngs=rngs)
        self.blocks = vit_blocks(
            width,
            num_heads,
            depth,
            mlp_ratio,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            layer_scale=LAYER_SCALE,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = LayerNorm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.head = make_head(head, width, init={"linear": HeadInit(normal_002)}, rngs=rngs)
        self.by_token = head.kind == "linear" and self.head is not None

    @property
    def position_grids(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of each position embedding, by its name."""
        return {"pos_embed": self.grid}

    def encode(
        self, images: jax.Array, *, train: bool, key: Key | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """The last map, `[batch, rows, columns, channels]`, and the class token."""
        key = training_key(key, train=train, needed=self.needs_key)
        pos_key, blocks_key = split_key(key, 2)
        _, height, width, _ = images.shape
        grid = patch_grid((height, width), self.patch_size, "the images' size")
        x = self.patch_embed(images)
        batch, _, _, channels = x.shape
        class_token, positions = self.cls_token[...], self.pos_embed[...]
        if self.reg_token is None:
            class_token, positions = class_token + positions[:, :1], positions[:, 1:]
        x = x + resize_positions(positions, self.grid, grid).astype(x.dtype)
        prefix = [class_token] if self.reg_token is None else [class_token, self.reg_token[...]]
        prefix = [jnp.broadcast_to(y.astype(x.dtype), (batch, *y.shape[1:])) for y in prefix]
        x = jnp.concatenate([*prefix, x.reshape(batch, -1, channels)], axis=1)
        x = self.pos_drop(x, pos_key)
        x = run_blocks(self.blocks, x, blocks_key, remat=self.remat)
        x = self.norm(x)
        return x[:, -grid[0] * grid[1] :].reshape(batch, *grid, channels), x[:, 0]

    def features(self, images: jax.Array, *, train: bool, key: Key | None = None) -> jax.Array:
        """The last feature map, `[batch, rows, columns, channels]`: the patches alone."""
        return self.encode(images, train=train, key=key)[0]

    def __call__(self, images: jax.Array, *, train: bool, key: Key | None = None) -> jax.Array:
        features_key, head_key = split_key(key, 2)
        patches, token = self.encode(images, train=train, key=features_key)
        features = token if self.by_token else patches
        return apply_head(self.head, features, train=train, key=head_key)


def resize_positions(
    pos_embed: jax.Array, grid: tuple[int, int], size: tuple[int, int]
) -> jax.Array:
    """Resizes position embeddings `[1, tokens, channels]` of a grid to `[1, *size, channels]`."""
    x = pos_embed.reshape(1, *grid, -1)
    if size == grid:
        return x
    rows, columns = (
        np.asarray(bicubic_weights(*sizes, antialias=True), np.float32)
        for sizes in zip(grid, size, strict=True)
    )
    # Platforms multiply float32 matrices in fewer bits unless told not to.
    return jnp.einsum("ai,bj,nijc->nabc", rows, columns, x, precision=jax.lax.Precision.HIGHEST)
