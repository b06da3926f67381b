"""The SimPool head: attention of the mean over the positions, and one linear layer.

Psomas, Kakogeorgiou, Karantzalos, Avrithis: "Keep It SimPool: Who Said Supervised Transformers
Suffer from Attention Deficit?" (arXiv:2309.06891), in the form of timm's `SimPool2d`: the query is
the mean of the map before its LayerNorm, whose epsilon is 1e-5, and each channel is shifted by its
own minimum before the power.
"""

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
from noah_jax.nn.dtypes import wide_einsum, widen
from noah_jax.nn.layers import LayerNorm, torch_default_kernel

SIMPOOL_OPTIONS = {"num_heads": 1, "gamma": None}

_SHIFT = 1e-6  # keeps the base of the power above 0


class SimPoolHead(AttentiveHead):
    """SimPool, dropout and one linear layer.

        y = LayerNorm(x)
        a = softmax_l((mean_l x[l]) Q . y[l] K / sqrt(D))
        pooled = sum_l a[l] y[l]

    The keys y K are never computed, see `noah_jax.nn.attention.query_weights`.

    With `gamma` the sum is of powers: (sum_l a[l] (y[l] - min_l y[l] + 1e-6) ** gamma) ** (1 /
    gamma). `attention` is the same for every class.

    Args:
      in_features: Channels of the feature map, D.
      num_classes: Number of classes.
      num_heads: Attention heads, which share out the channels.
      gamma: The exponent, above 0; the paper takes 2 behind convolutions and 1.25 in vision
        transformers. `None` is the plain sum, the default of the published code and of timm.
      dropout: Dropout rate on the pooled features while training.
      dtype: Compute dtype of the layers; softmax, sums and logits are float32.
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
        num_heads: int = 1,
        gamma: float | None = None,
        dropout: float = 0.0,
        dtype: Any = jnp.float32,
        kernel_init: nnx.Initializer | None = None,
        bias_init: nnx.Initializer = nnx.initializers.zeros,
        rngs: nnx.Rngs,
    ):
        super().__init__(in_features, num_classes, dropout=dropout, dtype=dtype)
        self.num_heads = check_count("num_heads", num_heads)
        if self.in_features % self.num_heads:
            raise InputError(
                f"num_heads={num_heads} does not divide the {in_features} channels of the map"
            )
        if gamma is not None and check_number("gamma", gamma) <= 0:
            raise InputError(f"gamma must be above 0 or None, got {gamma}")
        self.gamma = gamma
        self.norm = LayerNorm(self.in_features, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.q, self.k = (
            nnx.Linear(
                self.in_features,
                self.in_features,
                use_bias=False,
                dtype=dtype,
                kernel_init=torch_default_kernel(),
                rngs=rngs,
            )
            for _ in range(2)
        )
        self.linear = LastLinear(
            self.in_features,
            self.num_classes,
            dtype=dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
        )

    def logits(self, positions: jax.Array, key: Key | None) -> jax.Array:
        """See `PositionalHead.logits`."""
        normed = self.norm(positions)
        weights = self._weights(positions, normed).astype(self.dtype)
        values = normed.reshape(*normed.shape[:2], self.num_heads, -1)
        if self.gamma is not None:
            wide = widen(values)
            lowest = wide.min(axis=1, keepdims=True)
            values = ((wide - lowest + _SHIFT) ** self.gamma).astype(self.dtype)
        pooled = wide_einsum("bhl,blhc->bhc", weights, values)
        if self.gamma is not None:
            pooled = pooled ** (1 / self.gamma)
        return self.linear.logits(self.dropout(pooled.reshape(pooled.shape[0], -1), key))

    def weights(self, positions: jax.Array) -> jax.Array:
        """See `AttentiveHead.weights`."""
        return self._weights(positions, self.norm(positions))[:, :, None]

    def _weights(self, positions: jax.Array, normed: jax.Array) -> jax.Array:
        mean = widen(positions).mean(axis=1).astype(self.dtype)
        query = self.q(mean).reshape(mean.shape[0], self.num_heads, -1)
        kernel = self.k.kernel[...].reshape(self.in_features, self.num_heads, -1)
        return query_weights(query, kernel, normed)


def count_simpool_params(spec: HeadSpec, in_features: int) -> int:
    """Counts the parameters of a SimPool head on D channels: 2 D D + 2 D + (D + 1) K."""
    return 2 * in_features * (in_features + 1) + (in_features + 1) * spec.num_classes
