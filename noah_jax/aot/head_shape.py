"""The shape of a model's NOAH head, which decides what the head costs."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from noah_jax.heads.noah import NOAH
from noah_jax.models import create_model
from noah_jax.models.base import Model


class HeadShape(NamedTuple):
    """A NOAH head and the feature map that it reads.

    Attributes:
      spatial: Rows and columns of the map.
      channels: Channels of the map.
      head_num: Number of blocks, N in the paper.
      key_ratio: Fraction of the channels that makes the query, r in the paper.
      num_classes: Number of classes, K in the paper.
      spatial_major: Whether the map comes from convolutions; see `noah_jax.NOAH`.
      dropout: Dropout rate in training, which decides between the kernels.
    """

    spatial: tuple[int, ...]
    channels: int
    head_num: int
    key_ratio: float
    num_classes: int
    spatial_major: bool = False
    dropout: float = 0.0

    def flops(self, batch: int) -> int:
        """Returns the operations of a forward pass's products; gradients take twice as many."""
        return 2 * batch * math.prod(self.spatial) * self.channels * self.num_classes

    def bytes(self, batch: int, itemsize: int = 4) -> int:
        """Returns the bytes of features, weights and logits, each counted once.

        Args:
          batch: Number of images.
          itemsize: Bytes of a number of the features; weights and logits are float32.
        """
        features = batch * math.prod(self.spatial) * self.channels
        weights = (self.channels + 2 * self.head_num) * self.num_classes
        return itemsize * features + 4 * (weights + batch * self.num_classes)


def noah_head(shape: HeadShape, implementation: str, dtype: Any) -> NOAH:
    """Makes the head that `create_model` makes for a shape, but for the implementation."""
    return NOAH(
        shape.channels,
        shape.num_classes,
        shape.head_num,
        shape.key_ratio,
        dtype=dtype,
        implementation=implementation,
        spatial_major=shape.spatial_major,
        rngs=nnx.Rngs(params=0),
    )


def head_shape(model: Model) -> HeadShape:
    """Returns the shape of a model's NOAH head; computes nothing."""
    backbone = create_model(model.name, **(model.arguments | {"features_only": True}))
    images = jax.ShapeDtypeStruct((1, *model.image_size, 3), jnp.float32)
    features, _ = jax.eval_shape(
        functools.partial(backbone.apply, train=False), *backbone.abstract(), images
    )
    return HeadShape(
        features.shape[1:-1],
        features.shape[-1],
        model.arguments["head_num"],
        model.arguments["key_ratio"],
        model.num_classes,
        model.architecture.spatial_major,
        model.arguments["head_drop_rate"],
    )
