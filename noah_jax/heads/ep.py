"""The efficient-probing head: learnt queries that read the map itself, and one linear layer.

Psomas, Christopoulos, Baltzi, Kakogeorgiou, Aravanis, Komodakis, Karantzalos, Avrithis, Tolias:
"Attention, Please! Revisiting Attentive Probing for Masked Image Modeling" (arXiv:2506.10178), as
in the authors' `poolings/ep.py`. The BatchNorm without weights that they put before the linear
layer belongs to the probing recipe, not to the head.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from noah_jax.errors import InputError
from noah_jax.heads.attentive import AttentiveHead
from noah_jax.heads.linear import LastLinear
from noah_jax.heads.spec import HeadSpec
from noah_jax.nn.arguments import check_count
from noah_jax.nn.dropout import Key
from noah_jax.nn.dtypes import wide_einsum
from noah_jax.nn.layers import torch_default_kernel

EP_OPTIONS = {"queries": 32, "d_out": 1}


class EPHead(AttentiveHead):
    """Efficient probing: cross-attention of M learnt queries, dropout and one linear layer.

        a[m] = softmax_l(query[m] . x[l] / sqrt(D)),   pooled[m] = sum_l a[m, l] (x[l] V)[m]

    Keys are the positions themselves. The D / d_out channels of the value are shared out: each
    query pools its own M-th of them. (x V is never computed: the sum over positions comes first,
    which gives the same numbers for fewer multiply-adds.)

    `attention` has a map for each query where other heads have one for each attention head, the
    same for every class.

    Args:
      in_features: Channels of the feature map, D.
      num_classes: Number of classes.
      queries: M, or the next lower number that divides the value's channels.
      d_out: What the channels are divided by for the value; a divisor of `in_features`.
      dropout: Dropout rate on the pooled features while training.
      dtype: Compute dtype of the layers; softmax, sums and logits are float32.
      kernel_init: Initialiser of the last kernel, `[in_features / d_out, num_classes]`.
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
        queries: int = 32,
        d_out: int = 1,
        dropout: float = 0.0,
        dtype: Any = jnp.float32,
        kernel_init: nnx.Initializer | None = None,
        bias_init: nnx.Initializer = nnx.initializers.zeros,
        rngs: nnx.Rngs,
    ):
        super().__init__(in_features, num_classes, dropout=dropout, dtype=dtype)
        check_count("queries", queries)
        if self.in_features % check_count("d_out", d_out):
            raise InputError(f"d_out={d_out} does not divide the {in_features} channels of the map")
        features = self.in_features // d_out
        shape = (_num_queries(features, queries), self.in_features)
        self.queries = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), shape, jnp.float32))
        self.v = nnx.Linear(
            self.in_features,
            features,
            use_bias=False,
            dtype=dtype,
            kernel_init=torch_default_kernel(),
            rngs=rngs,
        )
        self.linear = LastLinear(
            features,
            self.num_classes,
            dtype=dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
        )

    def logits(self, positions: jax.Array, key: Key | None) -> jax.Array:
        """See `PositionalHead.logits`."""
        weights = self._attention(positions).astype(self.dtype)
        means = wide_einsum("bml,bld->bmd", weights, positions).astype(self.dtype)
        kernel = self.v.kernel[...].reshape(self.in_features, weights.shape[1], -1)
        pooled = wide_einsum("bmd,dmc->bmc", means, kernel)
        return self.linear.logits(self.dropout(pooled.reshape(pooled.shape[0], -1), key))

    def weights(self, positions: jax.Array) -> jax.Array:
        """See `AttentiveHead.weights`; every query counts as an attention head."""
        return self._attention(positions)[:, :, None]

    def _attention(self, positions: jax.Array) -> jax.Array:
        queries = self.queries[...] / math.sqrt(self.in_features)
        return jax.nn.softmax(wide_einsum("bld,md->bml", positions, queries), axis=-1)


def _num_queries(features: int, most: int) -> int:
    return next(m for m in range(min(most, features), 0, -1) if features % m == 0)


def count_ep_params(spec: HeadSpec, in_features: int) -> int:
    """Counts the parameters of an EP head on D channels: M D + D D / d_out + (D / d_out + 1) K."""
    features = in_features // spec.options["d_out"]
    queries = _num_queries(features, spec.options["queries"])
    return (queries + features) * in_features + (features + 1) * spec.num_classes
