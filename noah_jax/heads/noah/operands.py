"""What the head computes with: its weights, the parts of the features, and their shapes."""

import math
from typing import NamedTuple

import jax
import numpy as np

from noah_jax.errors import InputError
from noah_jax.nn.dropout import Seeds


class Projection(NamedTuple):
    """Weights of a 1x1 (grouped) convolution that gives `head_num * num_classes` channels.

    Attributes:
      kernel: `[head_num, in_features, num_classes]`, where `in_features` are the channels that
        one block sees.
      bias: `[head_num, num_classes]`.
    """

    kernel: jax.Array
    bias: jax.Array


class Weights(NamedTuple):
    """The weights of the head without the query's bias, which the softmax cancels.

    Attributes:
      query_kernel: `[head_num, query channels of a block, num_classes]`.
      value_kernel: `[head_num, value channels of a block, num_classes]`.
      value_bias: `[head_num, num_classes]`.
    """

    query_kernel: jax.Array
    value_kernel: jax.Array
    value_bias: jax.Array


class Operands(NamedTuple):
    """The parts of the features, and the weights.

    Attributes:
      query_part: `[channel groups, batch, positions, channels]`: the features that give the
        scores. There is one channel group for each block, or one for all blocks if every block
        sees all channels.
      value_part: The features that give the values, likewise.
      query_kernel: See `Weights`.
      value_kernel: See `Weights`.
      value_bias: See `Weights`.
    """

    query_part: jax.Array
    value_part: jax.Array
    query_kernel: jax.Array
    value_kernel: jax.Array
    value_bias: jax.Array


class ChannelSplit(NamedTuple):
    """How the channels of a feature map are shared out among query, value and blocks.

    Attributes:
      key_ratio: r, the fraction of the channels that feeds the query, in (0, 1).
      head_split: Whether each block sees only its own channels.
      kv_split: Whether query and value see different channels; if not, both see all.
    """

    key_ratio: float = 0.5
    head_split: bool = True
    kv_split: bool = True


class PocaInputs(NamedTuple):
    """What every implementation computes the logits from.

    Attributes:
      split: How the channels are shared out.
      features: `[batch, *spatial, channels]`.
      weights: Weights of the head.
      seeds: Seeds of the dropout masks; `None` switches dropout off.
    """

    split: ChannelSplit
    features: jax.Array
    weights: Weights
    seeds: Seeds | None

    def operands(self) -> Operands:
        """Cuts the features into the parts that the blocks see."""
        return split_operands(self.split, self.features, self.weights)


class PocaShape(NamedTuple):
    """Everything that decides which implementation computes a head, and in which blocks.

    Attributes:
      batch: Number of images; it may be symbolic, as in `jax.export`.
      spatial: Sizes of the spatial dimensions of the feature map.
      channels: Channels of the feature map.
      head_num: N, the number of blocks.
      num_classes: K, the number of classes.
      dtype: Dtype of the features.
      split: How the channels are shared out.
      dropout: Dropout rate on the values; 0 if it is off.
      spatial_major: Whether the features come from convolutions; see `noah_jax.poca`.
    """

    batch: int
    spatial: tuple[int, ...]
    channels: int
    head_num: int
    num_classes: int
    dtype: np.dtype
    split: ChannelSplit = ChannelSplit()
    dropout: float = 0.0
    spatial_major: bool = False

    @property
    def positions(self) -> int:
        """Number of positions of the feature map."""
        return math.prod(self.spatial)

    @property
    def channel_groups(self) -> int:
        """In how many groups the channels of a part are seen: one for each block, or one."""
        return self.head_num if self.split.head_split else 1

    @property
    def part_channels(self) -> tuple[int, int]:
        """Channels of the query's part and of the value's part."""
        return split_channels(self.split, self.channels, self.head_num)

    @property
    def block_channels(self) -> tuple[int, int]:
        """Query and value channels that one block sees."""
        query, value = self.part_channels
        return query // self.channel_groups, value // self.channel_groups


def split_channels(split: ChannelSplit, channels: int, head_num: int) -> tuple[int, int]:
    """Computes how many channels feed the query and the value.

    Args:
      split: How the channels are shared out.
      channels: Channels of the feature map.
      head_num: N, the number of blocks.

    Returns:
      `(query_channels, value_channels)` of all blocks together.

    Raises:
      InputError: If the channels cannot be split so; says which values would fit.
    """
    key_ratio, head_split, kv_split = split
    if head_num < 1:
        raise InputError(f"head_num must be at least 1, got {head_num}")
    if not 0 < key_ratio < 1:
        raise InputError(
            f"key_ratio must lie in (0, 1), got {key_ratio};"
            " the published heads use 1/8, 1/4 and 1/2"
        )
    if kv_split:
        query_channels = int(channels * key_ratio)
        value_channels = channels - query_channels
    else:
        query_channels = value_channels = channels
    if not query_channels or not value_channels:
        raise InputError(
            f"key_ratio={key_ratio} leaves no channel of {channels} to the"
            f" {'query' if not query_channels else 'value'};"
            f" it must be at least 1/{channels} and below 1"
        )
    if head_split and (query_channels % head_num or value_channels % head_num):
        common = math.gcd(query_channels, value_channels)
        fits = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
        raise InputError(
            f"head_num={head_num} does not divide both the {query_channels} query and the"
            f" {value_channels} value channels (key_ratio={key_ratio} of {channels} channels);"
            f" head_num can be {fits}, or choose another key_ratio, or head_split=False"
        )
    return query_channels, value_channels


def check_features(split: ChannelSplit, features: jax.Array, head_num: int) -> tuple[int, int]:
    """Checks that `[batch, *spatial, channels]` can be split.

    Returns:
      `(query_channels, value_channels)`, as `split_channels`.

    Raises:
      InputError: If the features have no channels or positions, or the channels do not split.
    """
    if features.ndim < 2:
        raise InputError(
            f"features must be [batch, *spatial, channels], got shape {features.shape}"
        )
    part_channels = split_channels(split, features.shape[-1], head_num)
    if not math.prod(features.shape[1:-1]):
        raise InputError(f"features have no positions to attend to, got shape {features.shape}")
    return part_channels


def split_features(
    split: ChannelSplit, features: jax.Array, head_num: int
) -> tuple[jax.Array, jax.Array]:
    """Cuts `[batch, *spatial, channels]` into the query's part and the value's part.

    Returns:
      Two arrays `[batch, positions, channels]`.

    Raises:
      InputError: As `check_features` does.
    """
    query_channels, _ = check_features(split, features, head_num)
    flat = flatten_positions(features)
    if not split.kv_split:
        return flat, flat
    return flat[..., :query_channels], flat[..., query_channels:]


def flatten_positions(features: jax.Array) -> jax.Array:
    """Reshapes `[batch, *spatial, channels]` to `[batch, positions, channels]`."""
    positions = math.prod(features.shape[1:-1])
    return features.reshape(features.shape[0], positions, features.shape[-1])


def split_operands(split: ChannelSplit, features: jax.Array, weights: Weights) -> Operands:
    """Cuts `[batch, *spatial, channels]` into the parts that the blocks see."""
    head_num = weights.query_kernel.shape[0]
    channel_groups = head_num if split.head_split else 1

    def group_channels(part: jax.Array) -> jax.Array:
        shape = (*part.shape[:2], channel_groups, part.shape[2] // channel_groups)
        return part.reshape(shape).transpose(2, 0, 1, 3)

    query_part, value_part = split_features(split, features, head_num)
    return Operands(group_channels(query_part), group_channels(value_part), *weights)


def add_bias(logits: jax.Array, bias: jax.Array) -> jax.Array:
    """Adds the value's bias `[head_num, classes]` to logits `[batch, classes]`.

    Only without dropout: the attention of a block then sums to one over the positions, so the
    bias passes through it unchanged.
    """
    return logits + bias.astype(logits.dtype).sum(0)


def check_projection(
    name: str, projection: Projection, channels: int, head_num: int, head_split: bool
) -> None:
    """Checks that a projection fits `channels` channels.

    Raises:
      InputError: If the shape of its kernel or bias does not fit.
    """
    in_features = channels // head_num if head_split else channels
    kernel, bias = projection
    if kernel.ndim != 3 or kernel.shape[:2] != (head_num, in_features):
        raise InputError(
            f"{name}.kernel must be [head_num={head_num}, in_features={in_features},"
            f" num_classes], got shape {kernel.shape}"
        )
    if bias.shape != (head_num, kernel.shape[2]):
        raise InputError(
            f"{name}.bias must be [head_num={head_num}, num_classes={kernel.shape[2]}],"
            f" got shape {bias.shape}"
        )
