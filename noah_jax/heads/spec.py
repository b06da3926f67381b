"""Which head a model gets, as the backbones see it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from noah_jax.heads.noah.poca import NOAH
from noah_jax.nn.layers import LinearHead


@dataclasses.dataclass(frozen=True)
class HeadSpec:
    """The choice of a head, before the backbone says how many channels it gives.

    Attributes:
      kind: "linear", "noah" or a module, called as `head(features, train=..., key=...)` on
        `[batch, *spatial, channels]`.
      num_classes: number of classes.
      head_num: NOAH's N.
      key_ratio: NOAH's r.
      head_split: see `NOAH`.
      kv_split: see `NOAH`.
      drop_rate: dropout inside the head.
      dtype: compute dtype.
      features_only: whether the head is left out; `kind` still decides whether the backbone
        has what a linear head needs, such as a class token.
      spatial_major: see `NOAH`.
    """

    kind: str | nnx.Module
    num_classes: int
    head_num: int
    key_ratio: float
    head_split: bool = True
    kv_split: bool = True
    drop_rate: float = 0.0
    dtype: Any = jnp.float32
    features_only: bool = False
    spatial_major: bool = False

    def make(
        self,
        in_features: int,
        *,
        linear_kernel_init: nnx.Initializer,
        linear_bias_init: nnx.Initializer = nnx.initializers.zeros,
        noah_kernel_init: nnx.Initializer | None = None,
        rngs: nnx.Rngs,
    ) -> nnx.Module | None:
        """The head for a map of `in_features` channels, started as the family starts it.

        `None` if only the features are wanted.
        """
        if self.features_only:
            return None
        if isinstance(self.kind, nnx.Module):
            # A copy: the caller's module must not share state with the model.
            return nnx.clone(self.kind)
        if self.kind == "linear":
            return LinearHead(
                in_features,
                self.num_classes,
                dropout=self.drop_rate,
                dtype=self.dtype,
                kernel_init=linear_kernel_init,
                bias_init=linear_bias_init,
                rngs=rngs,
            )
        return NOAH(
            in_features,
            self.num_classes,
            self.head_num,
            self.key_ratio,
            head_split=self.head_split,
            kv_split=self.kv_split,
            dropout=self.drop_rate,
            dtype=self.dtype,
            spatial_major=self.spatial_major,
            kernel_init=noah_kernel_init,
            rngs=rngs,
        )


def apply_head(
    head: nnx.Module | None, features: jax.Array, *, train: bool, key: jax.Array | None
) -> jax.Array:
    """The logits, or the features where there is no head."""
    return features if head is None else head(features, train=train, key=key)
