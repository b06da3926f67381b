"""ShuffleNetV2 (Ma et al., 2018) in torchvision's layout."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from noah_jax.errors import InputError
from noah_jax.heads.registry import apply_head, make_head
from noah_jax.heads.spec import HeadInit, HeadSpec
from noah_jax.models.backbone import BackboneSettings
from noah_jax.nn.dropout import Key
from noah_jax.nn.layers import (
    ConvNorm,
    max_pool,
    torch_default_bias,
    torch_default_kernel,
)
from noah_jax.nn.remat import run_layer


class ShuffleUnit(nnx.Module):
    """Convolves half of the channels (with stride 2 all, in two branches), then shuffles."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        stride: int,
        layer: functools.partial[ConvNorm],
    ):
        half = out_features // 2
        if stride == 1:
            self.branch1 = None
            in_features = half
        else:
            self.branch1 = nnx.List(
                [
                    layer(in_features, in_features, 3, stride=stride, depthwise=True),
                    layer(in_features, half, 1, activation=nnx.relu),
                ]
            )
        self.branch2 = nnx.List(
            [
                layer(in_features, half, 1, activation=nnx.relu),
                layer(half, half, 3, stride=stride, depthwise=True),
                layer(half, half, 1, activation=nnx.relu),
            ]
        )

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[batch, height, width, in_features]` -> `[batch, rows, columns, out_features]`."""
        if self.branch1 is None:
            left, right = jnp.split(x, 2, axis=-1)
        else:
            left = right = x
            for layer in self.branch1:
                left = layer(left, train=train)
        for layer in self.branch2:
            right = layer(right, train=train)
        # The channel shuffle: channels of the two branches alternate.
        return jnp.stack([left, right], axis=-1).reshape(*left.shape[:-1], -1)


class ShuffleNetV2(nnx.Module):
    """ShuffleNetV2 with any head.

    Args:
      head: Which head.
      settings: Image size, BatchNorm's statistics, rematerialisation and compute dtype.
      widths: Channels of the three stages and of the last convolution; the stages' are even.
      depths: Units of the stages.
      rngs: Source of the initial weights.
    """

    def __init__(
        self,
        head: HeadSpec,
        settings: BackboneSettings,
        *,
        widths: tuple[int, int, int, int],
        depths: tuple[int, int, int],
        rngs: nnx.Rngs,
    ):
        self.remat = settings.remat
        layer = functools.partial(
            ConvNorm,
            norm=settings.batch_norm,
            dtype=settings.dtype,
            kernel_init=torch_default_kernel(),
            rngs=rngs,
        )
        *stages, last = widths
        if any(width % 2 for width in stages):
            raise InputError(f"widths of the stages must be even numbers of channels, got {stages}")
        in_features = 24
        self.conv1 = layer(3, in_features, 3, stride=2, activation=nnx.relu)
        for stage, (features, depth) in enumerate(zip(stages, depths, strict=True)):
            units = []
            for i in range(depth):
                units.append(ShuffleUnit(in_features, features, 1 if i else 2, layer))
                in_features = features
            setattr(self, f"stage{stage + 2}", nnx.List(units))
        self.conv5 = layer(in_features, last, 1, activation=nnx.relu)
        self.head = make_head(
            head,
            last,
            init={"linear": HeadInit(torch_default_kernel(), torch_default_bias(last))},
            rngs=rngs,
        )

    def features(self, images: jax.Array, *, train: bool, key: Key | None = None) -> jax.Array:
        """Returns the last feature map, `[batch, height/32, width/32, channels]`."""
        x = max_pool(self.conv1(images, train=train), 3, 2, 1)
        for stage in (2, 3, 4):
            for unit in getattr(self, f"stage{stage}"):
                x = run_layer(unit, x, train=train, remat=self.remat)
        return self.conv5(x, train=train)

    def __call__(self, images: jax.Array, *, train: bool, key: Key | None = None) -> jax.Array:
        features = self.features(images, train=train)
        return apply_head(self.head, features, train=train, key=key)
