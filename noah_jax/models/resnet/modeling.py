"""ResNet (He et al., 2016) in torchvision's layout.

It is version 1, with the stride on the 3x3 convolution of a bottleneck.
"""

import functools

import jax
from flax import nnx

from noah_jax.errors import InputError
from noah_jax.heads.registry import apply_head, make_head
from noah_jax.heads.spec import HeadInit, HeadSpec
from noah_jax.models.backbone import BackboneSettings
from noah_jax.nn.dropout import Key
from noah_jax.nn.layers import ConvNorm, conv, max_pool
from noah_jax.nn.remat import run_layer


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and the shortcut."""

    expansion = 1

    def __init__(
        self,
        in_features: int,
        features: int,
        stride: int,
        settings: BackboneSettings,
        rngs: nnx.Rngs,
    ):
        convolution = functools.partial(conv, dtype=settings.dtype, rngs=rngs)
        self.conv1 = convolution(in_features, features, 3, stride=stride)
        self.bn1 = settings.batch_norm(features)
        self.conv2 = convolution(features, features, 3)
        self.bn2 = settings.batch_norm(features)
        self.downsample = _shortcut(in_features, features, stride, settings, rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[batch, height, width, in_features]` -> `[batch, rows, columns, out_features]`."""
        y = nnx.relu(self.bn1(self.conv1(x), train=train))
        y = self.bn2(self.conv2(y), train=train)
        return nnx.relu(y + self.downsample(x, train=train))


class Bottleneck(nnx.Module):
    """1x1, 3x3 (with the stride), 1x1 convolutions and the shortcut."""

    expansion = 4

    def __init__(
        self,
        in_features: int,
        features: int,
        stride: int,
        settings: BackboneSettings,
        rngs: nnx.Rngs,
    ):
        convolution = functools.partial(conv, dtype=settings.dtype, rngs=rngs)
        out_features = features * self.expansion
        self.conv1 = convolution(in_features, features, 1)
        self.bn1 = settings.batch_norm(features)
        self.conv2 = convolution(features, features, 3, stride=stride)
        self.bn2 = settings.batch_norm(features)
        self.conv3 = convolution(features, out_features, 1)
        self.bn3 = settings.batch_norm(out_features)
        self.downsample = _shortcut(in_features, out_features, stride, settings, rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[batch, height, width, in_features]` -> `[batch, rows, columns, out_features]`."""
        y = nnx.relu(self.bn1(self.conv1(x), train=train))
        y = nnx.relu(self.bn2(self.conv2(y), train=train))
        y = self.bn3(self.conv3(y), train=train)
        return nnx.relu(y + self.downsample(x, train=train))


class Identity(nnx.Module):
    """The shortcut of a block that keeps its shape."""

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return x


def _shortcut(
    in_features: int, out_features: int, stride: int, settings: BackboneSettings, rngs: nnx.Rngs
) -> Identity | ConvNorm:
    if stride == 1 and in_features == out_features:
        return Identity()
    return ConvNorm(
        in_features,
        out_features,
        1,
        stride=stride,
        norm=settings.batch_norm,
        dtype=settings.dtype,
        rngs=rngs,
    )


class ResNet(nnx.Module):
    """ResNet with any head, for images of at least 32 pixels (1 with the small stem).

    Args:
      head: Which head.
      settings: Image size, BatchNorm's statistics, rematerialisation and compute dtype.
      block: `BasicBlock` or `Bottleneck`.
      depths: Blocks in each of the four stages.
      width: Channels of the first stage; the published models have 64.
      stem: "imagenet" (7x7 with stride 2 and 3x3 max pooling) or "small" (3x3 with stride 1,
        without pooling: the usual stem for images of some 32 pixels).
      rngs: Source of the initial weights.
    """

    def __init__(
        self,
        head: HeadSpec,
        settings: BackboneSettings,
        *,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        width: int,
        stem: str = "imagenet",
        rngs: nnx.Rngs,
    ):
        if stem not in ("imagenet", "small"):
            raise InputError(f"stem must be 'imagenet' or 'small', got {stem!r}")
        self.stem = stem
        self.remat = settings.remat
        size, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = conv(3, width, size, stride=stride, dtype=settings.dtype, rngs=rngs)
        self.bn1 = settings.batch_norm(width)
        in_features = width
        for stage, depth in enumerate(depths):
            blocks = []
            for i in range(depth):
                stride = 2 if stage and not i else 1
                blocks.append(block(in_features, width << stage, stride, settings, rngs))
                in_features = (width << stage) * block.expansion
            setattr(self, f"layer{stage + 1}", nnx.List(blocks))
        self.head = make_head(
            head, in_features, init={"linear": HeadInit(nnx.initializers.normal(0.01))}, rngs=rngs
        )

    def features(self, images: jax.Array, *, train: bool, key: Key | None = None) -> jax.Array:
        """Returns the last feature map, `[batch, height/32, width/32, channels]`."""
        x = nnx.relu(self.bn1(self.conv1(images), train=train))
        if self.stem == "imagenet":
            x = max_pool(x, 3, 2, 1)
        for stage in (1, 2, 3, 4):
            for block in getattr(self, f"layer{stage}"):
                x = run_layer(block, x, train=train, remat=self.remat)
        return x

    def __call__(self, images: jax.Array, *, train: bool, key: Key | None = None) -> jax.Array:
        features = self.features(images, train=train)
        return apply_head(self.head, features, train=train, key=key)
