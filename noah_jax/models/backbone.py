"""What every backbone has in common: how it is called, and the settings it is built with."""

import dataclasses
import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from noah_jax.nn.dropout import Key
from noah_jax.nn.layers import BatchNorm


class Backbone(Protocol):
    """A backbone with its head: a Flax module with this attribute and these methods.

    Attributes:
      head: The head, or `None` if the backbone gives features only.
    """

    head: Any

    def features(self, images: jax.Array, *, train: bool, key: Key | None = None) -> jax.Array:
        """Returns the last feature map, `[batch, *spatial, channels]`.

        Args:
          images: Normalised images, `[batch, height, width, 3]`.
          train: Whether to train: batch statistics, dropout, stochastic depth.
          key: Random key of dropout and stochastic depth; needed to train with them.
        """

    def encode(
        self, images: jax.Array, *, train: bool, key: Key | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns the last feature map, and the class token `[batch, channels]` if there is one.

        A backbone that never has a class token need not have this method.
        """

    def __call__(self, images: jax.Array, *, train: bool, key: Key | None = None) -> jax.Array:
        """float32 logits `[batch, num_classes]`, or the last feature map if there is no head."""


@dataclasses.dataclass(frozen=True)
class BackboneSettings:
    """What a backbone is built with besides its head and its own sizes.

    A backbone takes from here what it needs.

    Attributes:
      image_size: `(height, width)` of the images, in pixels. Convolutional networks take any
        other size as well.
      batch_norm_group: Images per BatchNorm statistic; `None` is the whole batch.
      remat: Whether the backward pass computes the blocks' insides again to save memory.
      dtype: Compute dtype; parameters are float32.
    """

    image_size: tuple[int, int]
    batch_norm_group: int | None = None
    remat: bool = False
    dtype: Any = jnp.float32

    @property
    def batch_norm(self) -> functools.partial[BatchNorm]:
        """Makes a BatchNorm with these settings, called with the number of channels."""
        return functools.partial(
            BatchNorm, batch_norm_group=self.batch_norm_group, dtype=self.dtype
        )
