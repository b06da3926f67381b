"""The definition of the head, and what it looks at: the attention of chosen classes."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from noah_jax.errors import InputError
from noah_jax.heads.evidence import Contributions, check_classes
from noah_jax.heads.noah.kernels import images_per_device
from noah_jax.heads.noah.operands import (
    ChannelSplit,
    PocaInputs,
    PocaShape,
    Projection,
    add_bias,
    check_projection,
    split_features,
)
from noah_jax.nn.dropout import Seeds, kept, row_seeds
from noah_jax.nn.dtypes import wide_dtype, wide_einsum, widen
from noah_jax.nn.mesh_axes import on_auto_axes

_MOST_SCORES = 2**26  # 0.8 GB, at the 12 bytes a score that were measured


class ReferencePlan(NamedTuple):
    """How the definition is computed.

    Attributes:
      dropout: Dropout rate on the values; 0 if it is off.
    """

    dropout: float


def reference_plan(shape: PocaShape) -> ReferencePlan:
    """Plans the definition, which takes every shape."""
    return ReferencePlan(shape.dropout)


def small_plan(shape: PocaShape) -> ReferencePlan:
    """Plans the definition for GPUs, for shapes of which it is worth its memory.

    Measured on an H100 (jax 0.11.2, bfloat16, batch 128, 1000 classes), forward and backward:

    | map | scores | definition | chunks |
    |---|---|---|---|
    | ResNet-50, 7x7x2048 | 25 million | 0.74 ms, 310 MB | 1.88 ms, 141 MB |
    | PVT-Tiny, 7x7x512 | 25 million | 0.62 ms, 310 MB | 1.08 ms, 105 MB |
    | MobileNetV2, 7x7x1280 | 50 million | 1.20 ms, 617 MB | 2.78 ms, 113 MB |
    | DeiT-Tiny, 14x14x192 | 100 million | 2.74 ms, 1416 MB | 3.00 ms, 313 MB |
    | DeiT-Base, 14x14x768 | 100 million | 2.85 ms, 1447 MB | 4.17 ms, 344 MB |

    Up to 50 million scores the definition is about twice as fast and takes at most 0.5 GB more.
    At 100 million it gains less and takes 1.1 GB more, which a batch has better uses for.

    Args:
      shape: Shape of the head.

    Raises:
      InputError: If a device would hold too many scores, or nothing says how many.
    """
    images = images_per_device(shape, backend="gpu", interpret=False)
    scores = images * shape.head_num * shape.positions * shape.num_classes
    if scores > _MOST_SCORES:
        raise InputError(f"the definition would hold {scores} scores, more than {_MOST_SCORES}")
    return reference_plan(shape)


def reference_poca(plan: ReferencePlan, inputs: PocaInputs) -> jax.Array:
    """Computes the logits by the definition, with the scores of all classes at once.

    Args:
      plan: The plan of `reference_plan`.
      inputs: Features and weights.

    Returns:
      Logits `[batch, num_classes]`, at least float32.
    """
    split, features, weights, seeds = inputs
    query_part, value_part = split_features(split, features, weights.query_kernel.shape[0])
    attention = jax.nn.softmax(_project(query_part, weights.query_kernel, split), axis=-1)
    values = _project(value_part, weights.value_kernel, split)
    if seeds is None:
        return add_bias((attention * values).sum((1, 3)), weights.value_bias)
    values = values + weights.value_bias.astype(values.dtype)[..., None]
    return (attention * _dropped(values, seeds, plan.dropout)).sum((1, 3))


def _dropped(values: jax.Array, seeds: Seeds, rate: float) -> jax.Array:
    """Drops values `[batch, head_num, classes, positions]`."""
    _, head_num, num_classes, positions = values.shape
    rows = row_seeds(seeds, head_num, num_classes)[..., None]
    mask = kept(rows, jnp.arange(positions, dtype=jnp.int32), rate)
    return jnp.where(mask, values / (1 - rate), 0)


def _project(part: jax.Array, kernel: jax.Array, split: ChannelSplit) -> jax.Array:
    """`[batch, positions, channels]` -> wide `[batch, head_num, classes, positions]`."""
    if not split.head_split:
        equation = "bld,ndk->bnkl"
    else:
        part = part.reshape(*part.shape[:2], kernel.shape[0], kernel.shape[1])
        equation = "blnd,ndk->bnkl"
    return wide_einsum(equation, part, kernel)


def uniform_block_logits(
    split: ChannelSplit,
    features: jax.Array,
    value: Projection,
    *,
    dropout: float = 0.0,
    seeds: Seeds | None = None,
) -> jax.Array:
    """Computes what every block adds to the logits if its attention is the same everywhere.

    Args:
      split: How the channels are shared out.
      features: `[batch, *spatial, channels]`.
      value: Weights of the value.
      dropout: Dropout rate on the values.
      seeds: Seeds of the dropout masks; `None` switches it off.

    Returns:
      `[batch, head_num, num_classes]`, at least float32.
    """
    _, part = split_features(split, features, value.kernel.shape[0])
    if seeds is None:
        part = widen(part).mean(1, keepdims=True).astype(part.dtype)
    values = _project(part, value.kernel, split)
    values = values + value.bias.astype(values.dtype)[..., None]
    if seeds is not None:
        values = _dropped(values, seeds, dropout)
    return values.mean(-1)


def attention(
    features: jax.Array,
    query: Projection,
    classes: jax.Array,
    *,
    key_ratio: float = 0.5,
    head_split: bool = True,
    kv_split: bool = True,
) -> jax.Array:
    """Computes where the head looks for the chosen classes, and for no other.

    Args:
      features: `[batch, *spatial, channels]`.
      query: Weights of the query, `(kernel, bias)`.
      classes: Class indices, `[m]` for the same classes in every image or `[batch, m]`.
      key_ratio: See `noah_jax.poca`.
      head_split: See `noah_jax.poca`.
      kv_split: See `noah_jax.poca`.

    Returns:
      float32 `[batch, head_num, m, *spatial]`, which sums to one over the spatial dimensions.

    Raises:
      InputError: If the class indices have another shape, or a concrete one is out of range.
    """
    split = ChannelSplit(key_ratio, head_split, kv_split)
    query = Projection(*query)
    head_num, _, num_classes = query.kernel.shape
    part, _ = split_features(split, features, head_num)
    check_projection("query", query, part.shape[-1], head_num, head_split)
    classes = check_classes(classes, num_classes, features)

    def compute(part: jax.Array, kernel: jax.Array, classes: jax.Array) -> jax.Array:
        weights = jax.nn.softmax(_project_chosen(part, kernel, classes, split), axis=-1)
        return weights.reshape(*weights.shape[:3], *features.shape[1:-1])

    return on_auto_axes(compute, part, query.kernel, classes)


def contributions(
    features: jax.Array,
    query: Projection,
    value: Projection,
    classes: jax.Array,
    *,
    key_ratio: float = 0.5,
    head_split: bool = True,
    kv_split: bool = True,
) -> Contributions:
    """Computes what every position adds to the logits of the chosen classes, and of no other.

    Args:
      features: `[batch, *spatial, channels]`.
      query: Weights of the query, `(kernel, bias)`.
      value: Weights of the value, `(kernel, bias)`.
      classes: Class indices, `[m]` for the same classes in every image or `[batch, m]`.
      key_ratio: See `noah_jax.poca`.
      head_split: See `noah_jax.poca`.
      kv_split: See `noah_jax.poca`.

    Raises:
      InputError: As `attention` does.
    """
    weights = attention(
        features, query, classes, key_ratio=key_ratio, head_split=head_split, kv_split=kv_split
    )
    split = ChannelSplit(key_ratio, head_split, kv_split)
    return weighted_values(split, features, Projection(*value), classes, weights)


def weighted_values(
    split: ChannelSplit,
    features: jax.Array,
    value: Projection,
    classes: jax.Array,
    weights: jax.Array,
) -> Contributions:
    """Computes what every position adds under a given attention.

    Args:
      split: How the channels are shared out.
      features: `[batch, *spatial, channels]`.
      value: Weights of the value.
      classes: Class indices, `[m]` or `[batch, m]`.
      weights: The attention, `[batch, head_num, m, *spatial]`.

    Raises:
      InputError: As `attention` does.
    """
    head_num, _, num_classes = value.kernel.shape
    _, part = split_features(split, features, head_num)
    check_projection("value", value, part.shape[-1], head_num, split.head_split)
    classes = check_classes(classes, num_classes, features)

    def compute(
        weights: jax.Array, part: jax.Array, value: Projection, classes: jax.Array
    ) -> Contributions:
        values = _project_chosen(part, value.kernel, classes, split).reshape(weights.shape)
        bias = jnp.moveaxis(value.bias[:, classes], 0, -2)  # [..., N, m]
        bias = jnp.broadcast_to(bias, weights.shape[:3]).astype(weights.dtype)
        return Contributions(weights, weights * values, bias)

    return on_auto_axes(compute, weights, part, value, classes)


def uniform_attention(features: jax.Array, value: Projection, classes: jax.Array) -> jax.Array:
    """Returns an attention that is the same at all positions; see `attention`."""
    head_num, _, num_classes = value.kernel.shape
    classes = check_classes(classes, num_classes, features)
    spatial = features.shape[1:-1]
    shape = (features.shape[0], head_num, classes.shape[-1], *spatial)
    return jnp.full(shape, 1 / math.prod(spatial), wide_dtype(features.dtype))


def _project_chosen(
    part: jax.Array, kernel: jax.Array, classes: jax.Array, split: ChannelSplit
) -> jax.Array:
    """Projects as `_project` does, for the chosen classes alone."""
    head_num = kernel.shape[0]
    kernel = kernel[..., classes]  # [N, D, m] or [N, D, batch, m]
    if split.head_split:
        part = part.reshape(*part.shape[:2], head_num, -1)
    equation = ("blnd" if split.head_split else "bld") + (",ndk" if classes.ndim == 1 else ",ndbk")
    return wide_einsum(equation + "->bnkl", part, kernel)
