"""The GeM head: generalised-mean pooling and one linear layer.

Radenović, Tolias, Chum: "Fine-tuning CNN Image Retrieval with No Human Annotation"
(arXiv:1711.02512), section 3.2.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from noah_jax.errors import InputError
from noah_jax.heads.linear import LastLinear
from noah_jax.heads.positional import PositionalHead
from noah_jax.heads.spec import HeadSpec
from noah_jax.nn.arguments import check_number
from noah_jax.nn.dropout import Key
from noah_jax.nn.dtypes import widen

GEM_OPTIONS = {"p": 3.0}

_SMALLEST = 1e-6  # The published code raises every activation to at least this.


class GeMHead(PositionalHead):
    """Generalised-mean pooling, dropout and one linear layer.

        pooled[b, d] = (mean_l max(features[b, l, d], 1e-6) ** p) ** (1 / p)

    p = 1 is the mean and a large p nears the maximum. One p is learnt for all channels. Where
    activations are negative, as behind a LayerNorm, the pooling does not see them.

    Args:
      in_features: Channels of the feature map.
      num_classes: Number of classes.
      p: Where the exponent starts, above 0.
      dropout: Dropout rate on the pooled features while training.
      dtype: Compute dtype of the linear layer; pooling and logits are float32.
      kernel_init: Initialiser of the kernel, `[in_features, num_classes]`.
      bias_init: Initialiser of the bias, `[num_classes]`.
      rngs: Source of the initial weights.

    Raises:
      InputError: If an argument does not fit.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        p: float = GEM_OPTIONS["p"],
        dropout: float = 0.0,
        dtype: Any = jnp.float32,
        kernel_init: nnx.Initializer | None = None,
        bias_init: nnx.Initializer = nnx.initializers.zeros,
        rngs: nnx.Rngs,
    ):
        super().__init__(in_features, num_classes, dropout=dropout, dtype=dtype)
        if check_number("p", p) <= 0:
            raise InputError(f"p must be above 0, got {p}")
        self.p = nnx.Param(jnp.full((1,), p, jnp.float32))
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
        p = self.p[...]
        pooled = jnp.maximum(widen(positions), _SMALLEST) ** p
        return self.linear.logits(self.dropout(pooled.mean(1) ** (1 / p), key))


def count_gem_params(spec: HeadSpec, in_features: int) -> int:
    """Counts the parameters of a GeM head: those of a linear head, and p."""
    return (in_features + 1) * spec.num_classes + 1
