"""What the heads beside `LinearHead` and `NOAH` have in common: how they are called."""

from typing import Any, ClassVar

import jax
from flax import nnx

from noah_jax.errors import InputError
from noah_jax.heads.spec import HeadInit, HeadSpec
from noah_jax.nn.arguments import check_count, check_rate
from noah_jax.nn.dropout import Key, check_key
from noah_jax.nn.dtypes import widen
from noah_jax.nn.layers import Dropout
from noah_jax.nn.mesh_axes import on_auto_axes


class PositionalHead(nnx.Module):
    """A head that reads a feature map as a set of positions.

    A subclass makes its weights in `__init__` and computes `logits`.

    Args:
      in_features: Channels of the feature map.
      num_classes: Number of classes.
      dropout: Dropout rate while training, where the head has its dropout.
      dtype: Compute dtype of the layers; softmax, sums and logits are float32.

    Raises:
      InputError: If an argument does not fit.
    """

    # Whether the head was published with an initialiser of its last layer.
    has_own_init: ClassVar[bool] = False

    def __init__(self, in_features: int, num_classes: int, *, dropout: float, dtype: Any):
        self.in_features = check_count("in_features", in_features)
        self.num_classes = check_count("num_classes", num_classes, what=" for a head")
        self.dropout = Dropout(check_rate("dropout", dropout))
        self.dtype = dtype

    @classmethod
    def of_spec(
        cls, spec: HeadSpec, in_features: int, init: HeadInit, rngs: nnx.Rngs
    ) -> "PositionalHead":
        """Makes the head of `spec` on a map of `in_features` channels.

        Args:
          spec: The choice of the head, with all its options.
          in_features: Channels of the feature map.
          init: How the last layer starts, unless the head has an initialiser of its own.
          rngs: Source of the initial weights.
        """
        arguments: dict[str, Any] = {"dropout": spec.drop_rate, "dtype": spec.dtype, "rngs": rngs}
        if not cls.has_own_init:
            arguments |= {"kernel_init": init.kernel, "bias_init": init.bias}
        return cls(in_features, spec.num_classes, **arguments, **spec.options)

    def __call__(
        self, features: jax.Array, *, train: bool, key: jax.Array | None = None
    ) -> jax.Array:
        """Computes the logits.

        Args:
          features: `[batch, *spatial, in_features]`.
          train: Whether dropout applies.
          key: Random key of the dropout, needed to train with dropout.

        Returns:
          float32 logits, `[batch, num_classes]`.

        Raises:
          InputError: If the features do not fit, or the key is missing.
        """
        check_key(key, needed=train and self.is_random)
        self.check_features(features)
        graphdef, state = nnx.split(self)

        def compute(features: jax.Array, state: Any, key: Key | None) -> jax.Array:
            head = nnx.merge(graphdef, state)
            return widen(head.logits(head.positions(features), key))

        return on_auto_axes(compute, features, state, key if train else None)

    @property
    def is_random(self) -> bool:
        """Whether training draws random numbers."""
        return bool(self.dropout.rate)

    def check_features(self, features: jax.Array) -> None:
        """Raises an InputError if features have no positions, or other channels."""
        if features.ndim < 3 or features.shape[-1] != self.in_features:
            raise InputError(
                f"the head {type(self).__name__} needs features"
                f" [batch, *spatial, {self.in_features}], got {features.shape}"
            )

    def positions(self, features: jax.Array) -> jax.Array:
        """Returns features as `[batch, positions, in_features]` in the compute dtype."""
        return features.reshape(features.shape[0], -1, self.in_features).astype(self.dtype)

    def logits(self, positions: jax.Array, key: Key | None) -> jax.Array:
        """Computes logits `[batch, num_classes]` of `[batch, positions, in_features]`.

        Args:
          positions: The feature map in the compute dtype, its spatial dimensions as one.
          key: Random key of the dropout; `None` switches it off.
        """
        raise NotImplementedError
