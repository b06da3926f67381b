"""The MAP head: multi-head attention pooling by one learnt query, and one linear layer.

Zhai et al.: "Scaling Vision Transformers" (arXiv:2106.04560), as SigLIP has it (arXiv:2303.15343)
and timm's `AttentionPoolLatent`, whose names and formulas these are.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from noah_jax.errors import InputError
from noah_jax.heads.attentive import AttentiveHead
from noah_jax.heads.linear import LastLinear
from noah_jax.heads.spec import HeadSpec
from noah_jax.nn.arguments import check_count, check_number
from noah_jax.nn.dropout import Key
from noah_jax.nn.dtypes import wide_einsum
from noah_jax.nn.layers import LayerNorm
from noah_jax.nn.mlp import Mlp

MAP_OPTIONS = {"num_heads": None, "mlp_ratio": 4.0}

_HEAD_CHANNELS = 64  # of every published vision transformer with this head


class MAPHead(AttentiveHead):
    """Pools the map by multi-head attention of a learnt query, then an MLP and a linear layer.

        pooled[b] = proj(attention(q(latent), k(features[b]), v(features[b])))
        logits[b] = linear(pooled[b] + mlp(norm(pooled[b])))

    Because the query is the same for every image, keys and values are never computed: a head's
    scores are products of the features with `k.T q`, and its value is that of the mean that its
    attention takes of the features. The numbers are the same, for `num_heads / in_features` of
    the multiply-adds on the map.

    Args:
      in_features: Channels of the feature map.
      num_classes: Number of classes.
      num_heads: Attention heads, which must divide `in_features`. `None` gives each as many of
        the channels as go into 64, as in the published models, where 64 divides them.
      mlp_ratio: Hidden channels of the MLP over `in_features`.
      dropout: Dropout rate on the pooled features while training.
      dtype: Compute dtype of the layers; softmax, LayerNorm and logits are float32.
      kernel_init: Initialiser of the last kernel, `[in_features, num_classes]`. The latent query
        starts as in timm, and the other layers as in SigLIP's code: Xavier uniform, with biases
        of 0 (the MLP's: normal with a standard deviation of 1e-6).
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
        num_heads: int | None = None,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        dtype: Any = jnp.float32,
        kernel_init: nnx.Initializer | None = None,
        bias_init: nnx.Initializer = nnx.initializers.zeros,
        rngs: nnx.Rngs,
    ):
        super().__init__(in_features, num_classes, dropout=dropout, dtype=dtype)
        width = self.in_features
        self.num_heads = (
            published_num_heads(width) if num_heads is None else check_count("num_heads", num_heads)
        )
        if width % self.num_heads:
            raise InputError(
                f"num_heads of a map head must divide the {width} channels of the feature map, got"
                f" {num_heads}"
            )
        hidden = int(width * check_number("mlp_ratio", mlp_ratio))
        if hidden < 1:
            raise InputError(f"mlp_ratio must leave a hidden channel of {width}, got {mlp_ratio}")
        linear = functools.partial(nnx.Linear, dtype=dtype, param_dtype=jnp.float32, rngs=rngs)
        # Xavier's bound for a square kernel; the kernel of `kv` holds two of them.
        square = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")
        latent_init = nnx.initializers.truncated_normal(1 / math.sqrt(width))
        self.latent = nnx.Param(latent_init(rngs.params(), (1, 1, width), jnp.float32))
        self.q = linear(width, width, kernel_init=square)
        self.kv = linear(width, 2 * width, kernel_init=square)
        self.proj = linear(width, width, kernel_init=square)
        self.norm = LayerNorm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(
            width,
            hidden,
            drop_rate=0.0,
            dtype=dtype,
            kernel_init=nnx.initializers.xavier_uniform(),
            bias_init=nnx.initializers.normal(1e-6),
            rngs=rngs,
        )
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
        weights = self._attention(positions).astype(self.dtype)
        means = wide_einsum("bhl,bld->bhd", weights, positions)
        _, kernel, bias = self._keys_and_values()
        values = wide_einsum("bhd,dhc->bhc", means.astype(self.dtype), kernel) + bias
        pooled = self.proj(values.reshape(values.shape[0], -1).astype(self.dtype))
        pooled = pooled + self.mlp(self.norm(pooled), None)
        return self.linear.logits(self.dropout(pooled, key))

    def weights(self, positions: jax.Array) -> jax.Array:
        """See `AttentiveHead.weights`; the one query looks for all classes."""
        return self._attention(positions)[:, :, None]

    def _attention(self, positions: jax.Array) -> jax.Array:
        """Returns each head's attention, `[batch, num_heads, positions]`, at least float32."""
        kernel, _, _ = self._keys_and_values()
        query_bias = self.q.bias
        assert query_bias is not None  # `nnx.Linear` has one by default
        query = self.latent[0, 0] @ self.q.kernel[...] + query_bias[...]
        query = query.reshape(self.num_heads, -1)
        # The keys' bias adds the same to all positions, which the softmax does not see.
        directions = jnp.einsum("dhc,hc->dh", kernel, query) / math.sqrt(query.shape[-1])
        scores = wide_einsum("bld,dh->bhl", positions, directions)
        return jax.nn.softmax(scores, axis=-1)

    def _keys_and_values(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the kernels of keys and values, `[in_features, num_heads, channels]`, and a bias.

        The bias is the values', `[num_heads, channels]`.
        """
        both = self.kv.kernel[...].reshape(self.in_features, 2, self.num_heads, -1)
        assert self.kv.bias is not None  # `nnx.Linear` has one by default
        bias = self.kv.bias[self.in_features :].reshape(self.num_heads, -1)
        return both[:, 0], both[:, 1], bias


def published_num_heads(in_features: int) -> int:
    """Returns the fewest heads that share the channels out evenly, at most 64 for each."""
    return next(
        n
        for n in range(1, in_features + 1)
        if in_features % n == 0 and in_features // n <= _HEAD_CHANNELS
    )


def count_map_params(spec: HeadSpec, in_features: int) -> int:
    """Counts the parameters of a MAP head on D channels.

    They are the query's D, q, kv and proj with 4 D^2 + 4 D, the LayerNorm's 2 D, the MLP's
    2 D H + H + D with H hidden channels, and the linear layer's D K + K.
    """
    width, hidden = in_features, int(in_features * spec.options["mlp_ratio"])
    attention = width + 4 * width * (width + 1)
    mlp = 2 * width + 2 * width * hidden + hidden + width
    return attention + mlp + (width + 1) * spec.num_classes
