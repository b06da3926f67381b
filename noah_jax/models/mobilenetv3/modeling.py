"""MobileNetV3 (Howard et al., 2019) in the variant that NOAH was published with.

It differs from torchvision's. Squeeze-and-excitation has no biases and a quarter of the channels
of the layer it scales, and comes before the depthwise activation. Every block has its expansion,
even if it expands nothing.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from noah_jax.heads.registry import apply_head, make_head
from noah_jax.heads.spec import HeadInit, HeadSpec
from noah_jax.models.backbone import BackboneSettings
from noah_jax.nn.dropout import Key
from noah_jax.nn.layers import ConvNorm, conv, hard_sigmoid, hard_swish
from noah_jax.nn.remat import Layer, run_layer


class Block(NamedTuple):
    """One line of the paper's tables.

    Attributes:
      kernel_size: Kernel size of the depthwise convolution.
      hidden: Channels of the expansion.
      features: Output channels.
      squeeze: Whether there is squeeze-and-excitation.
      activation: The block's non-linearity.
      stride: Stride of the depthwise convolution.
    """

    kernel_size: int
    hidden: int
    features: int
    squeeze: bool
    activation: Callable[[jax.Array], jax.Array]
    stride: int


SMALL = (
    Block(3, 16, 16, True, nnx.relu, 2),
    Block(3, 72, 24, False, nnx.relu, 2),
    Block(3, 88, 24, False, nnx.relu, 1),
    Block(5, 96, 40, True, hard_swish, 2),
    Block(5, 240, 40, True, hard_swish, 1),
    Block(5, 240, 40, True, hard_swish, 1),
    Block(5, 120, 48, True, hard_swish, 1),
    Block(5, 144, 48, True, hard_swish, 1),
    Block(5, 288, 96, True, hard_swish, 2),
    Block(5, 576, 96, True, hard_swish, 1),
    Block(5, 576, 96, True, hard_swish, 1),
)
LARGE = (
    Block(3, 16, 16, False, nnx.relu, 1),
    Block(3, 64, 24, False, nnx.relu, 2),
    Block(3, 72, 24, False, nnx.relu, 1),
    Block(5, 72, 40, True, nnx.relu, 2),
    Block(5, 120, 40, True, nnx.relu, 1),
    Block(5, 120, 40, True, nnx.relu, 1),
    Block(3, 240, 80, False, hard_swish, 2),
    Block(3, 200, 80, False, hard_swish, 1),
    Block(3, 184, 80, False, hard_swish, 1),
    Block(3, 184, 80, False, hard_swish, 1),
    Block(3, 480, 112, True, hard_swish, 1),
    Block(3, 672, 112, True, hard_swish, 1),
    Block(5, 672, 160, True, hard_swish, 2),
    Block(5, 960, 160, True, hard_swish, 1),
    Block(5, 960, 160, True, hard_swish, 1),
)


def scaled(blocks: tuple[Block, ...], width_mult: float) -> list[Block]:
    """The blocks with all channels multiplied by a factor and rounded up to multiples of 8."""

    def up(channels: int) -> int:
        return math.ceil(channels * width_mult / 8) * 8

    return [b._replace(hidden=up(b.hidden), features=up(b.features)) for b in blocks]


def last_channels(width_mult: float) -> int:
    """Output channels of the last convolution."""
    return math.ceil(1280 * max(1.0, width_mult) / 8) * 8


class SqueezeExcite(nnx.Module):
    """Scales every channel by a gate in 0..1, computed from the mean over the positions."""

    def __init__(self, features: int, dtype: Any, rngs: nnx.Rngs):
        linear = functools.partial(
            nnx.Linear,
            use_bias=False,
            dtype=dtype,
            param_dtype=jnp.float32,
            kernel_init=nnx.initializers.normal(0.01),
            rngs=rngs,
        )
        self.reduce = linear(features, features // 4)
        self.expand = linear(features // 4, features)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, height, width, features]` -> the same shape."""
        gate = self.expand(nnx.relu(self.reduce(x.mean((1, 2), keepdims=True))))
        return x * hard_sigmoid(gate)


class InvertedResidual(nnx.Module):
    """1x1 expansion, depthwise, squeeze-and-excitation, 1x1 projection."""

    def __init__(
        self,
        in_features: int,
        block: Block,
        layer: functools.partial[ConvNorm],
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        size, hidden, features, squeeze, activation, stride = block
        self.expand = layer(in_features, hidden, 1, activation=activation)
        self.depthwise = layer(hidden, hidden, size, stride=stride, depthwise=True)
        self.se = SqueezeExcite(hidden, dtype, rngs) if squeeze else None
        self.activation = activation
        self.project = layer(hidden, features, 1)
        self.residual = stride == 1 and in_features == features

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[batch, height, width, in_features]` -> `[batch, rows, columns, features]`."""
        y = self.depthwise(self.expand(x, train=train), train=train)
        if self.se is not None:
            y = self.se(y)
        y = self.project(self.activation(y), train=train)
        return x + y if self.residual else y


class GlobalPool(nnx.Module):
    """Mean over the positions, as a map of 1x1."""

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return x.mean((1, 2), keepdims=True)


class MobileNetV3(nnx.Module):
    """MobileNetV3 with any head.

    With a linear head the last convolution runs after global pooling, as published. Any other
    head gets that convolution's whole map.

    Args:
      head: Which head.
      settings: Image size, BatchNorm's statistics, rematerialisation and compute dtype.
      blocks: The inverted residuals in order.
      width_mult: Factor of the blocks' channels. The first convolution has 16 channels, the last
        1280, which only a factor above 1 changes.
      rngs: Source of the initial weights.
    """

    def __init__(
        self,
        head: HeadSpec,
        settings: BackboneSettings,
        *,
        blocks: tuple[Block, ...],
        width_mult: float,
        rngs: nnx.Rngs,
    ):
        self.remat = settings.remat
        layer = functools.partial(
            ConvNorm, norm=settings.batch_norm, dtype=settings.dtype, rngs=rngs
        )
        layers: list[Layer] = [layer(3, 16, 3, stride=2, activation=hard_swish)]
        in_features = 16
        hidden = 0
        for block in scaled(blocks, width_mult):
            layers.append(InvertedResidual(in_features, block, layer, settings.dtype, rngs))
            in_features, hidden = block.features, block.hidden
        last = last_channels(width_mult)
        layers.append(layer(in_features, hidden, 1, activation=hard_swish))
        # The layers before the last convolution, which with a linear head runs after the pooling.
        self.depth = len(layers)
        self.pools = head.kind == "linear"
        if not (self.pools and head.features_only):
            layers += [GlobalPool()] if self.pools else []
            layers.append(conv(hidden, last, 1, use_bias=True, dtype=settings.dtype, rngs=rngs))
        self.layers = nnx.List(layers)
        self.head = make_head(
            head, last, init={"linear": HeadInit(nnx.initializers.normal(0.01))}, rngs=rngs
        )

    def features(self, images: jax.Array, *, train: bool, key: Key | None = None) -> jax.Array:
        """Returns the last feature map, `[batch, height/32, width/32, channels]`.

        With a linear head it is the map before the pooling.
        """
        x = images
        for layer in list(self.layers)[: self.depth]:
            x = run_layer(layer, x, train=train, remat=self.remat)
        return x if self.pools else hard_swish(self.layers[-1](x))

    def __call__(self, images: jax.Array, *, train: bool, key: Key | None = None) -> jax.Array:
        features = self.features(images, train=train)
        if self.pools and self.head is not None:
            pool, last = list(self.layers)[self.depth :]
            features = hard_swish(last(pool(features, train=train)))
        return apply_head(self.head, features, train=train, key=key)
