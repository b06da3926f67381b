"""A toy backbone, as an example of a new one: convolutions that halve the map."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from noah_jax.heads.registry import apply_head, make_head
from noah_jax.heads.spec import HeadInit, HeadSpec
from noah_jax.nn.layers import BatchNorm, ConvNorm
from noah_jax.nn.remat import run_layer


class Toy(nnx.Module):
    """Convolutions of stride 2 with any head.

    Args:
      head: Which head.
      width: Channels.
      depth: Number of convolutions.
      image_size: Unused: any size works.
      batch_norm_group: Images per BatchNorm statistic; `None` is the whole batch.
      remat: Whether the backward pass computes the layers' insides again to save memory.
      dtype: Compute dtype.
      rngs: Source of the initial weights.
    """

    def __init__(
        self,
        head: HeadSpec,
        *,
        width: int,
        depth: int,
        image_size: tuple[int, int],
        batch_norm_group: int | None = None,
        remat: bool = False,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        del image_size
        self.remat = remat
        norm = functools.partial(BatchNorm, batch_norm_group=batch_norm_group, dtype=dtype)
        layer = functools.partial(ConvNorm, norm=norm, dtype=dtype, rngs=rngs)
        self.layers = nnx.List(
            layer(width if i else 3, width, 3, stride=2, activation=nnx.relu) for i in range(depth)
        )
        init = {"linear": HeadInit(nnx.initializers.normal(0.01))}
        self.head = make_head(head, width, init=init, rngs=rngs)

    def features(
        self, images: jax.Array, *, train: bool, key: jax.Array | None = None
    ) -> jax.Array:
        """The last feature map, `[batch, height/2**depth, width/2**depth, channels]`."""
        x = images
        for layer in self.layers:
            x = run_layer(layer, x, train=train, remat=self.remat)
        return x

    def __call__(
        self, images: jax.Array, *, train: bool, key: jax.Array | None = None
    ) -> jax.Array:
        """float32 logits `[batch, num_classes]`."""
        return apply_head(self.head, self.features(images, train=train), train=train, key=key)
