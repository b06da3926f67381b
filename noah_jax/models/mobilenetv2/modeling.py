"""MobileNetV2 (Sandler et al., 2018) in torchvision's layout."""

import functools

import jax
from flax import nnx

from noah_jax.heads.registry import apply_head, make_head
from noah_jax.heads.spec import HeadInit, HeadSpec
from noah_jax.models.backbone import BackboneSettings
from noah_jax.nn.dropout import Key
from noah_jax.nn.layers import ConvNorm, relu6
from noah_jax.nn.remat import Layer, run_layer

# For each stage: expansion, channels at width 1, blocks, stride of the first block.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def round_channels(channels: float, divisor: int = 8) -> int:
    """Rounds to the nearest multiple of `divisor` that loses at most 10 % of the channels."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


def channels(width_mult: float) -> list[int]:
    """Output channels of the first convolution, of the stages and of the last convolution."""
    scaled = [round_channels(width_mult * c) for c in (32, *(stage[1] for stage in STAGES))]
    return [*scaled, round_channels(1280 * max(1.0, width_mult))]


class InvertedResidual(nnx.Module):
    """1x1 expansion (left out if it would not expand), 3x3 depthwise, 1x1 projection."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        expansion: int,
        stride: int,
        layer: functools.partial[ConvNorm],
    ):
        hidden = in_features * expansion
        self.expand = layer(in_features, hidden, 1, activation=relu6) if expansion > 1 else None
        self.depthwise = layer(hidden, hidden, 3, stride=stride, depthwise=True, activation=relu6)
        self.project = layer(hidden, out_features, 1)
        self.residual = stride == 1 and in_features == out_features

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[batch, height, width, in_features]` -> `[batch, rows, columns, out_features]`."""
        y = x if self.expand is None else self.expand(x, train=train)
        y = self.project(self.depthwise(y, train=train), train=train)
        return x + y if self.residual else y


class MobileNetV2(nnx.Module):
    """MobileNetV2 with any head.

    Args:
      head: Which head.
      settings: Image size, BatchNorm's statistics, rematerialisation and compute dtype.
      width_mult: Factor of all channels, except the last 1280, which only a factor above 1
        changes.
      rngs: Source of the initial weights.
    """

    def __init__(
        self, head: HeadSpec, settings: BackboneSettings, *, width_mult: float, rngs: nnx.Rngs
    ):
        self.remat = settings.remat
        layer = functools.partial(
            ConvNorm, norm=settings.batch_norm, dtype=settings.dtype, rngs=rngs
        )
        in_features, *stages, last = channels(width_mult)
        layers: list[Layer] = [layer(3, in_features, 3, stride=2, activation=relu6)]
        for (expansion, _, depth, stride), features in zip(STAGES, stages, strict=True):
            for i in range(depth):
                step = 1 if i else stride
                layers.append(InvertedResidual(in_features, features, expansion, step, layer))
                in_features = features
        layers.append(layer(in_features, last, 1, activation=relu6))
        self.layers = nnx.List(layers)
        self.head = make_head(
            head, last, init={"linear": HeadInit(nnx.initializers.normal(0.01))}, rngs=rngs
        )

    def features(self, images: jax.Array, *, train: bool, key: Key | None = None) -> jax.Array:
        """Returns the last feature map, `[batch, height/32, width/32, channels]`."""
        x = images
        for layer in self.layers:
            x = run_layer(layer, x, train=train, remat=self.remat)
        return x

    def __call__(self, images: jax.Array, *, train: bool, key: Key | None = None) -> jax.Array:
        features = self.features(images, train=train)
        return apply_head(self.head, features, train=train, key=key)
