"""Makes and counts the heads of the registry on the map of a published model."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from noah_jax.aot.head_shape import HeadShape
from noah_jax.heads.registry import HEADS, make_head
from noah_jax.heads.spec import HeadSpec
from noah_jax.models.flops import count_multiply_adds


def registered_head(
    shape: HeadShape, kind: str, dtype: str
) -> tuple[Callable[[jax.Array, Any], jax.Array], Any]:
    """Makes a head with its default options.

    Args:
      shape: The map, the number of classes, and NOAH's arguments.
      kind: A name in `HEADS`.
      dtype: Compute dtype.

    Returns:
      A function of features and weights that computes logits in evaluation, and the weights.
    """
    graphdef, weights = nnx.split(_make(shape, kind, dtype))
    return lambda features, weights: nnx.merge(graphdef, weights)(features, train=False), weights


def head_size(shape: HeadShape, kind: str) -> tuple[int, int]:
    """Counts a head's parameters, and the multiply-adds that it takes for an image.

    Args:
      shape: The map, the number of classes, and NOAH's arguments.
      kind: A name in `HEADS`.
    """
    head = nnx.eval_shape(lambda: _make(shape, kind, "float32"))
    graphdef, weights = nnx.split(head)
    features = jax.ShapeDtypeStruct((1, *shape.spatial, shape.channels), jnp.float32)
    operations = count_multiply_adds(
        lambda features, weights: nnx.merge(graphdef, weights)(features, train=False),
        features,
        weights,
    )
    return HEADS[kind].count_params(_spec(shape, kind, "float32"), shape.channels), operations


def _make(shape: HeadShape, kind: str, dtype: str) -> nnx.Module:
    head = make_head(_spec(shape, kind, dtype), shape.channels, init={}, rngs=nnx.Rngs(params=0))
    assert head is not None  # it is only where features alone are wanted
    return head


def _spec(shape: HeadShape, kind: str, dtype: str) -> HeadSpec:
    return HeadSpec(
        kind,
        shape.num_classes,
        shape.head_num,
        shape.key_ratio,
        dtype=jnp.dtype(dtype),
        options=HEADS[kind].options,
        spatial_major=shape.spatial_major,
    )
