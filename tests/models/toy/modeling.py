"""A toy backbone, as an example of a new one: convolutions that halve the map."""

import functools

import jax
from flax import nnx

from noah_jax.heads.registry import apply_head, make_head
from noah_jax.heads.spec import HeadInit, HeadSpec
from noah_jax.models.backbone import BackboneSettings
from noah_jax.nn.dropout import Key
from noah_jax.nn.layers import ConvNorm
from noah_jax.nn.remat import run_layer


class Toy(nnx.Module):
    """Convolutions of stride 2 with any head.

    Args:
      head: Which head.
      settings: Image size, BatchNorm's statistics, rematerialisation and compute dtype.
      width: Channels.
      depth: Number of convolutions.
      rngs: Source of the initial weights.
    """

    def __init__(
        self, head: HeadSpec, settings: BackboneSettings, *, width: int, depth: int, rngs: nnx.Rngs
    ):
        self.remat = settings.remat
        layer = functools.partial(
            ConvNorm, norm=settings.batch_norm, dtype=settings.dtype, rngs=rngs
        )
        self.layers = nnx.List(
            layer(width if i else 3, width, 3, stride=2, activation=nnx.relu) for i in range(depth)
        )
        init = {"linear": HeadInit(nnx.initializers.normal(0.01))}
        self.head = make_head(head, width, init=init, rngs=rngs)

    def features(self, images: jax.Array, *, train: bool, key: Key | None = None) -> jax.Array:
        """The last feature map, `[batch, height/2**depth, width/2**depth, channels]`."""
        for layer in self.layers:
            images = run_layer(layer, images, train=train, remat=self.remat)
        return images

    def __call__(self, images: jax.Array, *, train: bool, key: Key | None = None) -> jax.Array:
        """float32 logits `[batch, num_classes]`."""
        return apply_head(self.head, self.features(images, train=train), train=train, key=key)
