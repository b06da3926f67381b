"""ResNet 18/34/50/101/152 (He et al., 2016), torchvision's layout: v1 with the stride on
the 3x3 convolution of a bottleneck."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from noah_jax.errors import InputError
from noah_jax.heads.registry import apply_head, make_head
from noah_jax.heads.spec import HeadInit, HeadSpec
from noah_jax.nn.layers import BatchNorm, ConvNorm, conv, max_pool
from noah_jax.nn.remat import run_layer


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and the shortcut."""

    expansion = 1

    def __init__(self, in_features, features, stride, norm, dtype, rngs):
        self.conv1 = conv(in_features, features, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.bn1 = norm(features)
        self.conv2 = conv(features, features, 3, dtype=dtype, rngs=rngs)
        self.bn2 = norm(features)
        self.downsample = _shortcut(in_features, features, stride, norm, dtype, rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = nnx.relu(self.bn1(self.conv1(x), train=train))
        y = self.bn2(self.conv2(y), train=train)
        return nnx.relu(y + self.downsample(x, train=train))


class Bottleneck(nnx.Module):
    """1x1, 3x3 (with the stride), 1x1 convolutions and the shortcut."""

    expansion = 4

    def __init__(self, in_features, features, stride, norm, dtype, rngs):
        out_features = features * self.expansion
        self.conv1 = conv(in_features, features, 1, dtype=dtype, rngs=rngs)
        self.bn1 = norm(features)
        self.conv2 = conv(features, features, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.bn2 = norm(features)
        self.conv3 = conv(features, out_features, 1, dtype=dtype, rngs=rngs)
        self.bn3 = norm(out_features)
        self.downsample = _shortcut(in_features, out_features, stride, norm, dtype, rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = nnx.relu(self.bn1(self.conv1(x), train=train))
        y = nnx.relu(self.bn2(self.conv2(y), train=train))
        y = self.bn3(self.conv3(y), train=train)
        return nnx.relu(y + self.downsample(x, train=train))


class Identity(nnx.Module):
    """The shortcut of a block that keeps its shape."""

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return x


def _shortcut(in_features, out_features, stride, norm, dtype, rngs) -> nnx.Module:
    if stride == 1 and in_features == out_features:
        return Identity()
    return ConvNorm(in_features, out_features, 1, stride=stride, norm=norm, dtype=dtype, rngs=rngs)


class ResNet(nnx.Module):
    """ResNet v1 with any head.

    Args:
      head: which head.
      block: `BasicBlock` or `Bottleneck`.
      depths: blocks in each of the four stages.
      width: channels of the first stage; the published models have 64.
      image_size: unused: any size of at least 32 pixels (1 with the small stem) works.
      stem: "imagenet" (7x7 stride 2 and 3x3 max pooling) or "small" (3x3 stride 1 without
        pooling, the usual stem for images of some 32 pixels).
      batch_norm_group: images per BatchNorm statistic; `None` is the whole batch.
      remat: whether the backward pass computes the blocks' insides again to save memory.
      dtype: compute dtype.
      rngs: source of the initial weights.
    """

    def __init__(
        self,
        head: HeadSpec,
        *,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        width: int,
        image_size: tuple[int, int],
        stem: str = "imagenet",
        batch_norm_group: int | None = None,
        remat: bool = False,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        del image_size
        if stem not in ("imagenet", "small"):
            raise InputError(f"stem must be 'imagenet' or 'small', got {stem!r}")
        norm = functools.partial(BatchNorm, batch_norm_group=batch_norm_group, dtype=dtype)
        self.stem = stem
        self.remat = remat
        size, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = conv(3, width, size, stride=stride, dtype=dtype, rngs=rngs)
        self.bn1 = norm(width)
        in_features = width
        for stage, depth in enumerate(depths):
            blocks = []
            for i in range(depth):
                stride = 2 if stage and not i else 1
                blocks.append(block(in_features, width << stage, stride, norm, dtype, rngs))
                in_features = (width << stage) * block.expansion
            setattr(self, f"layer{stage + 1}", nnx.List(blocks))
        self.head = make_head(
            head, in_features, init={"linear": HeadInit(nnx.initializers.normal(0.01))}, rngs=rngs
        )

    def features(
        self, images: jax.Array, *, train: bool, key: jax.Array | None = None
    ) -> jax.Array:
        """The last feature map, `[batch, height/32, width/32, channels]`."""
        x = nnx.relu(self.bn1(self.conv1(images), train=train))
        if self.stem == "imagenet":
            x = max_pool(x, 3, 2, 1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                x = run_layer(block, x, train=train, remat=self.remat)
        return x

    def __call__(
        self, images: jax.Array, *, train: bool, key: jax.Array | None = None
    ) -> jax.Array:
        features = self.features(images, train=train)
        return apply_head(self.head, features, train=train, key=key)
