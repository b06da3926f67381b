"""The class-attention head: a class token reads the map in blocks of its own.

Touvron, Cord, Sablayrolles, Synnaeve, Jégou: "Going deeper with Image Transformers"
(arXiv:2103.17239), section 3: the end of CaiT, as in the authors' code and in timm's `Cait`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from noah_jax.errors import InputError
from noah_jax.heads.attentive import AttentiveHead
from noah_jax.heads.linear import LastLinear
from noah_jax.heads.spec import HeadSpec
from noah_jax.nn.arguments import check_count, check_number
from noah_jax.nn.attention import query_weights
from noah_jax.nn.dropout import Key
from noah_jax.nn.dtypes import wide_einsum
from noah_jax.nn.layers import LayerNorm
from noah_jax.nn.mlp import Mlp

CLASS_ATTENTION_OPTIONS = {"depth": 2, "head_width": 48, "mlp_ratio": 4.0, "layer_scale": 1e-5}

_normal_002 = nnx.initializers.normal(0.02)


class ClassAttentionHead(AttentiveHead):
    """A class token, class-attention blocks, LayerNorm, dropout and one linear layer.

        t = t + gamma_1 * Attention(query t, keys and values LayerNorm([t, x]))
        t = t + gamma_2 * Mlp(LayerNorm(t))

    Keys and values are never computed, as in `noah_jax.heads.map`: there is one query.

    The map stays as it is; only the token changes from block to block. `attention` is that of the
    last block without the weight of the token itself, the same for every class.

    Args:
      in_features: Channels of the feature map, D.
      num_classes: Number of classes.
      depth: Number of blocks.
      head_width: Fewest channels of an attention head: there are as many heads as divide D into
        equal parts of at least so many channels.
      mlp_ratio: Hidden channels of the perceptrons over D.
      layer_scale: Where gamma_1 and gamma_2 start. CaiT takes 0.1 up to 18 blocks in all, 1e-5 up
        to 24, and 1e-6 above.
      dropout: Dropout rate on the token before the linear layer while training.
      dtype: Compute dtype of the layers; softmax and logits are float32.
      kernel_init: Initialiser of the last kernel, `[in_features, num_classes]`.
      bias_init: Initialiser of the last bias, `[num_classes]`.
      rngs: Source of the initial weights.

    Raises:
      InputError: If an argument does not fit.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        depth: int = 2,
        head_width: int = 48,
        mlp_ratio: float = 4.0,
        layer_scale: float = 1e-5,
        dropout: float = 0.0,
        dtype: Any = jnp.float32,
        kernel_init: nnx.Initializer | None = None,
        bias_init: nnx.Initializer = nnx.initializers.zeros,
        rngs: nnx.Rngs,
    ):
        super().__init__(in_features, num_classes, dropout=dropout, dtype=dtype)
        check_count("depth", depth)
        width = self.in_features
        num_heads = _num_heads(width, check_count("head_width", head_width))
        hidden = int(width * check_number("mlp_ratio", mlp_ratio))
        if hidden < 1:
            raise InputError(f"mlp_ratio must give at least 1 hidden channel, got {mlp_ratio}")
        check_number("layer_scale", layer_scale)
        self.cls_token = nnx.Param(_normal_002(rngs.params(), (1, 1, width), jnp.float32))
        self.blocks = nnx.List(
            _Block(width, num_heads, hidden, layer_scale, dtype, rngs) for _ in range(depth)
        )
        self.norm = LayerNorm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.linear = LastLinear(
            width,
            self.num_classes,
            dtype=dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
        )

    def logits(self, positions: jax.Array, key: Key | None) -> jax.Array:
        """See `PositionalHead.logits`."""
        token = self._token(positions, len(self.blocks))
        return self.linear.logits(self.dropout(self.norm(token)[:, 0], key))

    def weights(self, positions: jax.Array) -> jax.Array:
        """See `AttentiveHead.weights`."""
        *_, last = self.blocks
        return last.weights(self._token(positions, len(self.blocks) - 1), positions)

    def _token(self, positions: jax.Array, blocks: int) -> jax.Array:
        """Returns the token after some blocks, `[batch, 1, in_features]`."""
        token = self.cls_token.astype(positions.dtype)
        token = jnp.broadcast_to(token, (positions.shape[0], *token.shape[1:]))
        for block in self.blocks[:blocks]:
            token = block(token, positions)
        return token


class _Block(nnx.Module):
    """Attention of the token and a perceptron, each with LayerScale in a residual branch."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        hidden: int,
        layer_scale: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.norm1, self.norm2 = (
            LayerNorm(width, epsilon=1e-6, dtype=dtype, rngs=rngs) for _ in range(2)
        )
        self.attn = _ClassAttention(width, num_heads, dtype, rngs)
        self.mlp = Mlp(
            width, hidden, drop_rate=0.0, dtype=dtype, kernel_init=_normal_002, rngs=rngs
        )
        self.gamma_1, self.gamma_2 = (
            nnx.Param(jnp.full(width, layer_scale, jnp.float32)) for _ in range(2)
        )

    def __call__(self, token: jax.Array, positions: jax.Array) -> jax.Array:
        """`[batch, 1, width]` and `[batch, positions, width]` -> the token's shape."""
        gammas = (gamma.astype(token.dtype) for gamma in (self.gamma_1, self.gamma_2))
        gamma_1, gamma_2 = gammas
        token = token + gamma_1 * self.attn(self._normed(token, positions))
        return token + gamma_2 * self.mlp(self.norm2(token), None)

    def weights(self, token: jax.Array, positions: jax.Array) -> jax.Array:
        """Computes the attention to the positions alone, float32 `[batch, heads, 1, positions]`."""
        x = self._normed(token, positions)
        # Without the token in the softmax the others keep their ratios.
        return self.attn.weights(x[:, 0], x[:, 1:])[:, :, None]

    def _normed(self, token: jax.Array, positions: jax.Array) -> jax.Array:
        return self.norm1(jnp.concatenate([token, positions], axis=1))


class _ClassAttention(nnx.Module):
    """Attention whose only query is the first token."""

    def __init__(self, width: int, num_heads: int, dtype: Any, rngs: nnx.Rngs):
        linear = functools.partial(nnx.Linear, kernel_init=_normal_002, dtype=dtype, rngs=rngs)
        self.q, self.k, self.v = (linear(width, width) for _ in range(3))
        self.proj = linear(width, width)
        self.num_heads = num_heads

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, tokens, width]` -> `[batch, 1, width]`."""
        weights = self.weights(x[:, 0], x).astype(x.dtype)
        means = wide_einsum("bhl,bld->bhd", weights, x).astype(x.dtype)
        values = wide_einsum("bhd,dhc->bhc", means, self._by_head(self.v))
        assert self.v.bias is not None  # `nnx.Linear` has one by default
        attended = values.reshape(x.shape[0], 1, -1) + self.v.bias[...]
        return self.proj(attended.astype(x.dtype))

    def weights(self, token: jax.Array, x: jax.Array) -> jax.Array:
        """Computes the weights of `[batch, tokens, width]`, float32 `[batch, heads, tokens]`."""
        query = self.q(token).reshape(token.shape[0], self.num_heads, -1)
        return query_weights(query, self._by_head(self.k), x)

    def _by_head(self, linear: nnx.Linear) -> jax.Array:
        kernel = linear.kernel[...]
        return kernel.reshape(kernel.shape[0], self.num_heads, -1)


def _num_heads(width: int, head_width: int) -> int:
    return next(n for n in range(max(1, width // head_width), 0, -1) if width % n == 0)


def count_class_attention_params(spec: HeadSpec, in_features: int) -> int:
    """Counts the parameters of a class-attention head.

    On D channels with H hidden ones, each block has 4 D (D + 1) for its attention, 2 D H + H + D
    for its perceptron and 6 D for norms and scales; the token, the last norm and the linear layer
    have D + 2 D + (D + 1) K.
    """
    width, depth = in_features, spec.options["depth"]
    hidden = int(width * spec.options["mlp_ratio"])
    block = 4 * width * (width + 1) + 2 * width * hidden + hidden + 7 * width
    return depth * block + 3 * width + (width + 1) * spec.num_classes
