"""The two-layer perceptron of transformers and MLPs."""

import functools
from typing import Any

import jax
from flax import nnx

from noah_jax.nn.dropout import Key, split_key
from noah_jax.nn.gelu import gelu
from noah_jax.nn.layers import Dropout


class Mlp(nnx.Module):
    """Linear, GELU, dropout, linear, dropout over the last axis.

    Args:
      features: Size of the last axis.
      hidden: Size of the hidden layer.
      drop_rate: Rate of both dropouts.
      dtype: Compute dtype.
      kernel_init: Initialiser of both kernels.
      bias_init: Initialiser of both biases.
      rngs: Source of the initial weights.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        drop_rate: float,
        dtype: Any,
        kernel_init: nnx.Initializer,
        bias_init: nnx.Initializer = nnx.initializers.zeros,
        rngs: nnx.Rngs,
    ):
        linear = functools.partial(
            nnx.Linear, kernel_init=kernel_init, bias_init=bias_init, dtype=dtype, rngs=rngs
        )
        self.fc1 = linear(features, hidden)
        self.fc2 = linear(hidden, features)
        self.drop = Dropout(drop_rate)

    def __call__(self, x: jax.Array, key: Key | None) -> jax.Array:
        """`[..., features]` -> the same shape."""
        key1, key2 = split_key(key, 2)
        x = self.drop(gelu(self.fc1(x)), key1)
        return self.drop(self.fc2(x), key2)
