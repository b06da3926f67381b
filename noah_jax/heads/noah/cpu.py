"""POCA in loops over blocks and chunks of their classes, for CPUs.

The arithmetic is that of `chunked.py`. Here nothing is rearranged beforehand: every block
cuts its channels out of the feature map and every chunk its classes out of the weights where they
lie, and gradients are added in place, so that besides the results there are only one block's
channels and one chunk in memory. (For TPUs, slices of a map whose last axis is the channels' would
be copies in another layout.)
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim

from noah_jax.heads.noah.chunked import Weights, attend, differentiate, scaled_mask
from noah_jax.nn import dropout as dropouts
from noah_jax.nn.dtypes import wide_dtype, wide_einsum

# Scores of one chunk: as many as the caches of a few CPU cores hold beside as many values, but no
# narrower than products are efficient; twice as many were 5 % faster on ResNet-50's map and took a
# third more memory.
_SCORES = 2**19
_FEWEST_CLASSES = 128
_TILE = 64  # classes; products of a few less take longer
_COMMON_BATCH = 32


class _Plan(NamedTuple):
    """What a chunk is.

    Attributes:
      parts: chunks that make the classes of a block; the last two may overlap.
      classes: classes in a chunk.
      head_split: whether each block sees only its own share of the channels.
      value_from: the first of the channels that give values.
    """

    parts: int
    classes: int
    head_split: bool
    value_from: int


def looped_poca(
    features: jax.Array,
    weights: Weights,
    seeds: dropouts.Seeds | None = None,
    *,
    head_split: bool,
    kv_split: bool,
    dropout: float = 0.0,
) -> jax.Array:
    """Wide logits, `[batch, classes]`; see `noah_jax.heads.noah.poca.poca`.

    Args:
      features: `[batch, positions, channels]`: those of the scores, then those of the values, or
        all for both.
      weights: of the head.
      seeds: of the dropout's masks; `None` switches it off.
      head_split: whether each block sees only its own share of the channels.
      kv_split: whether scores and values see different channels.
      dropout: rate of the dropout on the values.
    """
    batch, positions, channels = features.shape
    head_num, value_in, num_classes = weights.value_kernel.shape
    # A symbolic batch, of `jax.export`, is planned as a common one.
    images = _COMMON_BATCH if is_symbolic_dim(batch) else batch
    parts, classes = _chunks(num_classes, _SCORES // max(images * positions, 1))
    value_from = channels - value_in * (head_num if head_split else 1) if kv_split else 0
    plan = _Plan(parts, classes, head_split, value_from)
    if seeds is not None:
        return _pairwise(plan, dropout, features, weights, seeds)
    logits = _pairwise(plan, 0.0, features, weights._replace(value_bias=None), None)
    # The weights sum to one over the positions, so the bias passes through unchanged.
    return logits + weights.value_bias.astype(logits.dtype).sum(0)


def _chunks(num_classes: int, limit: int) -> tuple[int, int]:
    """Into how many chunks of how many classes a block is cut, about `limit` each."""
    parts = math.ceil(num_classes / max(limit // _TILE * _TILE, _FEWEST_CLASSES))
    classes = math.ceil(num_classes / parts / _TILE) * _TILE
    return parts, min(classes, num_classes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _pairwise(
    plan: _Plan,
    rate: float,
    features: jax.Array,
    weights: Weights,
    seeds: dropouts.Seeds | None,
) -> jax.Array:
    """Logits, `[batch, classes]`."""
    return _forward(plan, rate, features, weights, seeds)[0]


def _forward(plan, rate, features, weights, seeds):
    def add_block(logits, block):
        channels = _cut_channels(plan, block, features, weights)

        def add_chunk(logits, part):
            window, chunk = _cut_classes(plan, block, part, weights)
            keep = _mask(plan, rate, block, window, features, seeds)
            scores, values = _evidence(keep, *channels, *chunk)
            shape = (*features.shape[:2], plan.classes)
            kept = attend(scores.reshape(shape), values.reshape(shape))
            out = jnp.where(window.own, kept.out, 0)
            return _add(logits, (jnp.int32(0), window.label), out), kept

        return jax.lax.scan(add_chunk, logits, _indices(plan.parts))

    head_num, _, num_classes = weights.query_kernel.shape
    zeros = jnp.zeros((features.shape[0], num_classes), wide_dtype(features.dtype))
    logits, kept = jax.lax.scan(add_block, zeros, _indices(head_num))
    return logits, (features, weights, seeds, kept)


def _backward(plan, rate, residuals, cotangent):
    features, weights, seeds, kept = residuals

    def add_block(totals, inputs):
        block, kept = inputs
        channels = _cut_channels(plan, block, features, weights)

        def add_chunk(totals, inputs):
            part, kept = inputs
            window, chunk = _cut_classes(plan, block, part, weights)
            keep = _mask(plan, rate, block, window, features, seeds)
            (scores, values), pull = jax.vjp(functools.partial(_evidence, keep), *channels, *chunk)
            upstream = jax.lax.dynamic_slice_in_dim(cotangent, window.label, plan.classes, axis=1)
            upstream = jnp.where(window.own, upstream, 0)
            # In the shape of the scores, whose memory their gradients then can take.
            for_positions = functools.partial(_for_positions, features.shape[1])
            rows = jax.tree.map(for_positions, (kept, upstream))
            to_query_part, to_value_part, *to_chunk = pull(differentiate(scores, values, *rows))
            to_features, *to_weights = totals
            for start, gradient in zip(
                _channel_starts(plan, block, weights), (to_query_part, to_value_part), strict=True
            ):
                to_features = _add(to_features, start, gradient.reshape(*features.shape[:2], -1))
            return (to_features, *map(_add, to_weights, window.starts, to_chunk)), None

        return jax.lax.scan(add_chunk, totals, (_indices(plan.parts), kept))

    arrays = (features, *(x for x in weights if x is not None))
    zeros = tuple(jnp.zeros(x.shape, wide_dtype(x.dtype)) for x in arrays)
    totals, _ = jax.lax.scan(add_block, zeros, (_indices(len(weights.query_kernel)), kept))
    to_features, *to_weights = (
        total.astype(x.dtype) for total, x in zip(totals, arrays, strict=True)
    )
    if weights.value_bias is None:
        to_weights.append(None)
    return to_features, Weights(*to_weights), None


_pairwise.defvjp(_forward, _backward)


def _indices(count: int) -> jax.Array:
    return jnp.arange(count, dtype=jnp.int32)


def _add(total: jax.Array, start: tuple, gradient: jax.Array) -> jax.Array:
    """`total` with a gradient of its part from `start` on added."""
    old = jax.lax.dynamic_slice(total, start, gradient.shape)
    return jax.lax.dynamic_update_slice(total, old + gradient.astype(old.dtype), start)


def _channel_starts(plan: _Plan, block: jax.Array, weights: Weights) -> tuple[tuple, tuple]:
    """Where the channels of a block's scores and values begin in the feature map."""
    zero = jnp.int32(0)  # all starts have one dtype, also where integers are 64 bits wide
    own = block if plan.head_split else zero
    query_in, value_in = (kernel.shape[1] for kernel in weights[:2])
    return (zero, zero, own * query_in), (zero, zero, plan.value_from + own * value_in)


def _cut_channels(plan, block, features, weights) -> list[jax.Array]:
    """The channels of a block's scores and values, each `[batch * positions, channels]`.

    As matrices, so that the weights' gradients are products of them as they lie.
    """
    channels = []
    for start, kernel in zip(_channel_starts(plan, block, weights), weights[:2], strict=True):
        shape = (*features.shape[:2], kernel.shape[1])
        part = jax.lax.dynamic_slice(features, start, shape)
        channels.append(part.reshape(-1, kernel.shape[1]))
    return channels


class _Window(NamedTuple):
    """Where a chunk lies.

    Attributes:
      label: its first class.
      own: which of its classes the chunk before it has not, bool `[classes]`.
      starts: where its part of each of the weights begins.
    """

    label: jax.Array
    own: jax.Array
    starts: list[tuple]


def _cut_classes(plan, block, part, weights) -> tuple[_Window, list[jax.Array]]:
    """Where a chunk lies, and a block's weights of its classes."""
    label = jnp.minimum(part * plan.classes, weights.query_kernel.shape[-1] - plan.classes)
    own = label + jnp.arange(plan.classes) >= part * plan.classes
    present = [x for x in weights if x is not None]
    starts = [(block, *[jnp.int32(0)] * (x.ndim - 2), label) for x in present]
    chunk = [
        jax.lax.dynamic_slice(x, start, (1, *x.shape[1:-1], plan.classes))
        for x, start in zip(present, starts, strict=True)
    ]
    return _Window(label, own, starts), chunk


def _evidence(keep, query_part, value_part, query_kernel, value_kernel, value_bias=None):
    """Scores and values of a chunk, wide `[batch * positions, classes]`."""
    scores = wide_einsum("rd,dk->rk", query_part, query_kernel[0])
    values = wide_einsum("rd,dk->rk", value_part, value_kernel[0])
    if value_bias is not None:
        values = values + value_bias.astype(values.dtype)
    return scores, values if keep is None else values * keep.reshape(values.shape)


def _for_positions(count: int, x: jax.Array) -> jax.Array:
    """`[batch, classes]` for each position, `[batch * positions, classes]`."""
    batch, classes = x.shape
    return jnp.broadcast_to(x[:, None], (batch, count, classes)).reshape(-1, classes)


def _mask(plan, rate, block, window, features, seeds):
    if seeds is None:
        return None
    shape = (1, *features.shape[:2], plan.classes)
    return scaled_mask(seeds, shape, (block, window.label), rate, features.dtype)[0]
