"""The linear head: global average pooling, dropout and one linear layer."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from noah_jax.heads.spec import HeadInit, HeadSpec
from noah_jax.nn.arguments import check_count
from noah_jax.nn.dropout import Key, check_key
from noah_jax.nn.dtypes import wide_einsum, widen
from noah_jax.nn.layers import Dropout
from noah_jax.nn.mesh_axes import on_auto_axes


class LastLinear(nnx.Linear):
    """The linear layer at the end of a head, whose logits are float32 whatever the compute dtype.

    Args:
      in_features: Channels.
      num_classes: Number of classes.
      dtype: Compute dtype.
      kernel_init: Initialiser of the kernel, `[in_features, num_classes]`; `None` is LeCun's.
      bias_init: Initialiser of the bias, `[num_classes]`.
      rngs: Source of the initial weights.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        dtype: Any,
        kernel_init: nnx.Initializer | None,
        bias_init: nnx.Initializer,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            in_features,
            num_classes,
            dtype=dtype,
            param_dtype=jnp.float32,
            kernel_init=kernel_init or nnx.initializers.lecun_normal(),
            bias_init=bias_init,
            rngs=rngs,
        )

    def logits(self, pooled: jax.Array) -> jax.Array:
        """Computes float32 `[batch, num_classes]` of `[batch, in_features]`."""
        assert self.bias is not None and self.dtype is not None
        product = wide_einsum("bd,dk->bk", pooled.astype(self.dtype), self.kernel[...])
        return product + self.bias[...]


class LinearHead(nnx.Module):
    """The usual head: mean over the positions, dropout, one linear layer.

    Args:
      in_features: Channels of the feature map.
      num_classes: Number of classes.
      dropout: Dropout rate on the pooled features while training.
      dtype: Compute dtype of the linear layer; the logits are float32.
      kernel_init: Initialiser of the kernel, `[in_features, num_classes]`.
      bias_init: Initialiser of the bias, `[num_classes]`.
      rngs: Source of the initial weights.

    Raises:
      InputError: If `num_classes` is not a whole number of at least 1.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        dropout: float = 0.0,
        dtype: Any = jnp.float32,
        kernel_init: nnx.Initializer | None = None,
        bias_init: nnx.Initializer = nnx.initializers.zeros,
        rngs: nnx.Rngs,
    ):
        num_classes = check_count("num_classes", num_classes, what=" for a head")
        self.linear = LastLinear(
            in_features,
            num_classes,
            dtype=dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
        )
        self.dropout = Dropout(dropout)
        self.dtype = dtype

    def __call__(
        self, features: jax.Array, *, train: bool, key: jax.Array | None = None
    ) -> jax.Array:
        """Computes float32 logits `[batch, num_classes]` of `[batch, *spatial, in_features]`."""
        check_key(key, needed=train and bool(self.dropout.rate))
        kernel, bias = self.linear.kernel[...], self.linear.bias
        assert bias is not None  # `nnx.Linear` has one by default

        def logits(
            features: jax.Array, kernel: jax.Array, bias: jax.Array, key: Key | None
        ) -> jax.Array:
            positions = tuple(range(1, features.ndim - 1))
            pooled = self.dropout(widen(features).mean(positions), key)
            return wide_einsum("bd,dk->bk", pooled.astype(self.dtype), kernel) + bias

        return on_auto_axes(logits, features, kernel, bias[...], key if train else None)


def count_linear_params(spec: HeadSpec, in_features: int) -> int:
    """Counts the parameters of a linear head: D K + K on D channels."""
    return (in_features + 1) * spec.num_classes


def make_linear_head(
    spec: HeadSpec, in_features: int, init: HeadInit, rngs: nnx.Rngs
) -> LinearHead:
    """Makes the linear head of `spec` on a map of `in_features` channels."""
    return LinearHead(
        in_features,
        spec.num_classes,
        dropout=spec.drop_rate,
        dtype=spec.dtype,
        kernel_init=init.kernel,
        bias_init=init.bias,
        rngs=rngs,
    )
