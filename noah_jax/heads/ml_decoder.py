"""The ML-Decoder head: one decoder layer whose queries stand for groups of classes.

Ridnik, Sharir, Ben-Cohen, Ben-Baruch, Noy: "ML-Decoder: Scalable and Versatile Classification Head"
(arXiv:2111.12933), as in the authors' code and in timm's `MLDecoder`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from noah_jax.errors import InputError
from noah_jax.heads.attentive import AttentiveHead
from noah_jax.heads.spec import HeadSpec
from noah_jax.nn.arguments import check_count, check_rate
from noah_jax.nn.attention import attention_weights
from noah_jax.nn.dropout import Key, split_key
from noah_jax.nn.dtypes import wide_einsum
from noah_jax.nn.layers import Dropout, LayerNorm, torch_default_bias, torch_default_kernel

ML_DECODER_OPTIONS = {
    "groups": 100,
    "width": 768,
    "hidden": 2048,
    "num_heads": 8,
    "decoder_dropout": 0.1,
}


class MLDecoderHead(AttentiveHead):
    """Group queries, one decoder layer without self-attention, and a linear layer for each group.

        y = relu(x W + b)
        h = Decoder(queries, y),  [groups, width]
        logits[g F + f] = h[g] . pooling[g, :, f] + bias[g F + f],   F = ceil(K / groups)

    The queries are random numbers that are not learnt. `attention` shows for each class where the
    query of its group looks.

    Args:
      in_features: Channels of the feature map.
      num_classes: Number of classes, K.
      groups: Number of queries; the number of classes if that is lower.
      width: Channels of the decoder.
      hidden: Channels of the hidden layer in the decoder's perceptron.
      num_heads: Attention heads, which share out `width`.
      decoder_dropout: Dropout rate while training at the decoder's four places: the queries, the
        attention's weights, its output, and the perceptron.
      dropout: Dropout rate on the decoder's output while training; not published.
      dtype: Compute dtype of the layers; softmax, sums and logits are float32.
      rngs: Source of the initial weights.

    Raises:
      InputError: If an argument does not fit.
    """

    has_own_init = True

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        groups: int = 100,
        width: int = 768,
        hidden: int = 2048,
        num_heads: int = 8,
        decoder_dropout: float = 0.1,
        dropout: float = 0.0,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(in_features, num_classes, dropout=dropout, dtype=dtype)
        groups = min(check_count("groups", groups), self.num_classes)
        width = check_count("width", width)
        if width % check_count("num_heads", num_heads):
            raise InputError(f"num_heads={num_heads} does not divide width={width}")
        hidden, rate = check_count("hidden", hidden), check_rate("decoder_dropout", decoder_dropout)
        self.classes_per_group = math.ceil(self.num_classes / groups)
        self.embed_standart = _linear(self.in_features, width, dtype, rngs)
        self.query_embed = nnx.Param(
            nnx.initializers.normal(1.0)(rngs.params(), (groups, width), jnp.float32)
        )
        self.decoder = _DecoderLayer(width, hidden, num_heads, rate, dtype, rngs)
        shape = groups, width, self.classes_per_group
        # PyTorch's Xavier of three axes: the last one counts as a receptive field.
        deviation = math.sqrt(2 / ((groups + width) * self.classes_per_group))
        self.duplicate_pooling = nnx.Param(
            nnx.initializers.normal(deviation)(rngs.params(), shape, jnp.float32)
        )
        self.duplicate_pooling_bias = nnx.Param(jnp.zeros(self.num_classes, jnp.float32))

    @property
    def is_random(self) -> bool:
        """See `PositionalHead.is_random`."""
        return bool(self.dropout.rate or self.decoder.dropout.rate)

    def logits(self, positions: jax.Array, key: Key | None) -> jax.Array:
        """See `PositionalHead.logits`."""
        decoder_key, key = split_key(key, 2)
        decoded = self.decoder(self._queries(), self._memory(positions), decoder_key)
        decoded = self.dropout(decoded, key)
        pooling = self.duplicate_pooling[...]
        duplicated = wide_einsum("bgc,gcf->bgf", decoded, pooling)
        logits = duplicated.reshape(duplicated.shape[0], -1)[:, : self.num_classes]
        return logits + self.duplicate_pooling_bias[...]

    def weights(self, positions: jax.Array) -> jax.Array:
        """See `AttentiveHead.weights`; there is a query for each group."""
        memory = self._memory(positions)
        return self.decoder.weights(self.decoder.normed(self._queries(), memory, None), memory)

    def query_of(self, classes: jax.Array) -> jax.Array:
        """Returns the group of each class."""
        return classes // self.classes_per_group

    def _queries(self) -> jax.Array:
        return jax.lax.stop_gradient(self.query_embed[...]).astype(self.dtype)

    def _memory(self, positions: jax.Array) -> jax.Array:
        return jax.nn.relu(self.embed_standart(positions))


class _DecoderLayer(nnx.Module):
    """Post-norm cross-attention and perceptron, without self-attention."""

    def __init__(
        self, width: int, hidden: int, num_heads: int, dropout: float, dtype: Any, rngs: nnx.Rngs
    ):
        self.norm1, self.norm2, self.norm3 = (
            LayerNorm(width, epsilon=1e-5, dtype=dtype, rngs=rngs) for _ in range(3)
        )
        self.multihead_attn = _Projections(width, dtype, rngs)
        self.linear1 = _linear(width, hidden, dtype, rngs)
        self.linear2 = _linear(hidden, width, dtype, rngs)
        self.dropout = Dropout(dropout)
        self.num_heads = num_heads

    def __call__(self, queries: jax.Array, memory: jax.Array, key: Key | None) -> jax.Array:
        """Decodes queries `[queries, width]` over `[batch, positions, width]`.

        Returns:
          `[batch, queries, width]`.
        """
        query_key, weights_key, attended_key, hidden_key, out_key = split_key(key, 5)
        queries = self.normed(queries, memory, query_key)
        weights = self.dropout(self.weights(queries, memory), weights_key)
        values = self._split(self.multihead_attn.part(memory, 2))
        attended = wide_einsum("bhqk,bkhc->bqhc", weights.astype(memory.dtype), values)
        attended = attended.astype(memory.dtype).reshape(memory.shape[0], *queries.shape[1:])
        attended = self.multihead_attn.out_proj(attended)
        x = self.norm2(queries + self.dropout(attended, attended_key))
        hidden = self.dropout(jax.nn.relu(self.linear1(x)), hidden_key)
        return self.norm3(x + self.dropout(self.linear2(hidden), out_key))

    def normed(self, queries: jax.Array, memory: jax.Array, key: Key | None) -> jax.Array:
        """Normalises the queries, `[batch, queries, width]`; without dropout all images share one.

        The published layer adds the queries to themselves, where others have a self-attention.
        """
        images = 1 if key is None else memory.shape[0]
        queries = jnp.broadcast_to(queries, (images, *queries.shape))
        return self.norm1(queries + self.dropout(queries, key))

    def weights(self, queries: jax.Array, memory: jax.Array) -> jax.Array:
        """Computes the softmax, float32 `[batch, heads, queries, positions]`."""
        query = self.multihead_attn.part(queries, 0)
        query = jnp.broadcast_to(query, (memory.shape[0], *query.shape[1:]))
        keys = self.multihead_attn.part(memory, 1)
        return attention_weights(self._split(query), self._split(keys))

    def _split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], self.num_heads, -1)


class _Projections(nnx.Module):
    """The projections of `torch.nn.MultiheadAttention` and its initialisers."""

    def __init__(self, width: int, dtype: Any, rngs: nnx.Rngs):
        xavier = nnx.initializers.xavier_uniform()
        self.in_proj = nnx.Linear(width, 3 * width, dtype=dtype, kernel_init=xavier, rngs=rngs)
        self.out_proj = nnx.Linear(
            width, width, dtype=dtype, kernel_init=torch_default_kernel(), rngs=rngs
        )

    def part(self, x: jax.Array, index: int) -> jax.Array:
        """Projects `[..., width]` to the queries (0), the keys (1) or the values (2)."""
        assert self.in_proj.bias is not None
        kernel, bias = (
            jnp.split(weights[...].astype(x.dtype), 3, -1)[index]
            for weights in (self.in_proj.kernel, self.in_proj.bias)
        )
        return x @ kernel + bias


def _linear(in_features: int, out_features: int, dtype: Any, rngs: nnx.Rngs) -> nnx.Linear:
    """Makes a linear layer with PyTorch's initialisers."""
    return nnx.Linear(
        in_features,
        out_features,
        dtype=dtype,
        kernel_init=torch_default_kernel(),
        bias_init=torch_default_bias(in_features),
        rngs=rngs,
    )


def count_ml_decoder_params(spec: HeadSpec, in_features: int) -> int:
    """Counts the parameters of an ML-Decoder head, the fixed queries too.

    On D channels with G groups, W channels and H hidden ones that is (D + 1) W + G W for what the
    decoder reads, 4 (W + 1) W + 2 W H + H + W + 6 W for the decoder, and G W ceil(K / G) + K.
    """
    options = spec.options
    groups = min(options["groups"], spec.num_classes)
    width, hidden = options["width"], options["hidden"]
    read = (in_features + 1 + groups) * width
    decoder = 4 * (width + 1) * width + 2 * width * hidden + hidden + 7 * width
    return read + decoder + groups * width * math.ceil(spec.num_classes / groups) + spec.num_classes
