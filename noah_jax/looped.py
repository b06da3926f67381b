"""POCA in a loop over chunks of classes, for CPUs.

The arithmetic is that of `noah_jax.chunked`. Here nothing is rearranged beforehand: every step
cuts its channels out of the feature map and its classes out of the weights where they lie, and
adds its gradients in place, so that besides the results there is only one chunk in memory. (For
TPUs, slices of a map whose last axis is the channels' would be copies in another layout.)
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim

from noah_jax import dropout as dropouts
from noah_jax.chunked import Weights, attend, differentiate, scaled_mask
from noah_jax.dtypes import wide_dtype, wide_einsum

# Scores of one chunk: about what the caches of a few CPU cores hold, beside as many values.
_SCORES = 2**20
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
    """Wide logits, `[batch, classes]`; see `noah_jax.head.poca`.

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
    """Into how many chunks of how many classes a block is cut, about `limit` at most."""
    parts = math.ceil(num_classes / max(limit // _TILE * _TILE, _TILE))
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
    def step(logits, index):
        windows, pieces = _cut(plan, index, features, weights)
        kept = attend(*_evidence(_mask(plan, rate, windows, features, seeds), *pieces))
        own = jnp.where(_own_classes(plan, index, windows), kept.out, 0)
        return _add_to((jnp.int32(0), windows.label), own)(logits), kept

    head_num, _, num_classes = weights.query_kernel.shape
    zeros = jnp.zeros((features.shape[0], num_classes), wide_dtype(features.dtype))
    logits, kept = jax.lax.scan(step, zeros, _indices(plan, head_num))
    return logits, (features, weights, seeds, kept)


def _backward(plan, rate, residuals, cotangent):
    features, weights, seeds, kept = residuals

    def step(totals, inputs):
        index, kept = inputs
        windows, pieces = _cut(plan, index, features, weights)
        keep = _mask(plan, rate, windows, features, seeds)
        (scores, values), pull = jax.vjp(functools.partial(_evidence, keep), *pieces)
        upstream = jax.lax.dynamic_slice_in_dim(cotangent, windows.label, plan.classes, axis=1)
        upstream = jnp.where(_own_classes(plan, index, windows), upstream, 0)
        gradients = pull(differentiate(scores, values, kept, upstream))
        to_features, *to_weights = totals
        to_query_part, to_value_part, *to_chunk = map(_add_to, windows.starts, gradients)
        to_features = to_value_part(to_query_part(to_features))
        to_weights = [add(total) for add, total in zip(to_chunk, to_weights, strict=True)]
        return (to_features, *to_weights), None

    arrays = (features, *weights) if weights.value_bias is not None else (features, *weights[:2])
    zeros = tuple(jnp.zeros(x.shape, wide_dtype(x.dtype)) for x in arrays)
    indices = _indices(plan, len(weights.query_kernel))
    totals, _ = jax.lax.scan(step, zeros, (indices, kept))
    to_features, *to_weights = (
        total.astype(x.dtype) for total, x in zip(totals, arrays, strict=True)
    )
    if weights.value_bias is None:
        to_weights.append(None)
    return to_features, Weights(*to_weights), None


_pairwise.defvjp(_forward, _backward)


def _indices(plan: _Plan, head_num: int) -> jax.Array:
    """Of the chunks: all of one block, then the next block's."""
    return jnp.arange(head_num * plan.parts, dtype=jnp.int32)


class _Windows(NamedTuple):
    """Where a chunk lies.

    Attributes:
      block: its block.
      label: its first class.
      starts: where its arrays begin, those of `_evidence`, in theirs.
    """

    block: jax.Array
    label: jax.Array
    starts: list[tuple]


def _cut(plan, index, features, weights):
    """Where a chunk lies, and its arrays: those of `_evidence`."""
    block = index // plan.parts
    num_classes = weights.query_kernel.shape[-1]
    label = jnp.minimum(index % plan.parts * plan.classes, num_classes - plan.classes)
    query_in, value_in = (kernel.shape[1] for kernel in weights[:2])
    zero = jnp.int32(0)  # all starts have one dtype, also where integers are 64 bits wide
    own = block if plan.head_split else zero
    batch, positions, _ = features.shape
    cuts = [
        (features, (zero, zero, own * query_in), (batch, positions, query_in)),
        (features, (zero, zero, plan.value_from + own * value_in), (batch, positions, value_in)),
        (weights.query_kernel, (block, zero, label), (1, query_in, plan.classes)),
        (weights.value_kernel, (block, zero, label), (1, value_in, plan.classes)),
    ]
    if weights.value_bias is not None:
        cuts.append((weights.value_bias, (block, label), (1, plan.classes)))
    starts = [start for _, start, _ in cuts]
    return _Windows(block, label, starts), [jax.lax.dynamic_slice(*cut) for cut in cuts]


def _own_classes(plan: _Plan, index: jax.Array, windows: _Windows) -> jax.Array:
    """Which classes of a chunk the one before it has not, bool `[classes]`."""
    return windows.label + jnp.arange(plan.classes) >= index % plan.parts * plan.classes


def _add_to(start, gradient):
    """What adds a gradient to the total of the whole array."""

    def add(total):
        old = jax.lax.dynamic_slice(total, start, gradient.shape)
        return jax.lax.dynamic_update_slice(total, old + gradient.astype(old.dtype), start)

    return add


def _evidence(keep, query_part, value_part, query_kernel, value_kernel, value_bias=None):
    """Scores and values of one block, wide `[batch, positions, classes]`."""
    scores = wide_einsum("bld,dk->blk", query_part, query_kernel[0])
    values = wide_einsum("bld,dk->blk", value_part, value_kernel[0])
    if value_bias is not None:
        values = values + value_bias.astype(values.dtype)
    return scores, values if keep is None else values * keep


def _mask(plan, rate, windows, features, seeds):
    if seeds is None:
        return None
    shape = (1, *features.shape[:2], plan.classes)
    return scaled_mask(seeds, shape, (windows.block, windows.label), rate, features.dtype)[0]
