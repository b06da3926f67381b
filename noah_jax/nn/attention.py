"""Scaled dot-product attention of DeiT and PVT, and the projections before it."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint

from noah_jax.nn.dtypes import wide_einsum, widen
from noah_jax.nn.per_device import on_each_device


@jax.custom_vjp
def attend(query: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """Scaled dot-product attention; scores and softmax are at least float32.

    Plain batches of matrix products with the heads in front, which is faster on CPUs than
    `jax.nn.dot_product_attention`, whose heads stay beside the channels. For the backward pass
    the weights are kept in the compute dtype, and nothing else of their size.

    Args:
      query: `[batch, tokens, heads, channels]`.
      keys: `[batch, other tokens, heads, channels]`.
      values: as `keys`.

    Returns:
      `[batch, tokens, heads, channels]`.
    """
    return _attend(query, keys, values, train=False)[0]


def _forward(query, keys, values):
    return _attend(query, keys, values, train=True)


def _attend(query, keys, values, *, train):
    kept = query, keys, values
    query, keys, values = _heads_first(*kept)
    scores = wide_einsum("bhqc,bhkc->bhqk", query, keys)
    if train:  # only: `jax.export` refuses pinned layouts
        scores = _row_major(scores)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    share = 1 / weights.sum(axis=-1, keepdims=True)
    # The softmax's division, on whichever has fewer numbers.
    if keys.shape[-2] < values.shape[-1]:
        weights, share = weights * share, None
    weights = weights.astype(values.dtype)
    out = _shared(wide_einsum("bhqk,bhkc->bhqc", weights, values), share)
    out = out.astype(values.dtype).swapaxes(1, 2)
    if train:  # XLA would keep it as it was before it was rounded, at twice the size
        out = jax.lax.optimization_barrier(out)
    return out, (*kept, weights, share, out)


def _backward(kept, cotangent):
    *operands, weights, share, out = kept
    query, keys, values = _heads_first(*operands)
    cotangent, out = cotangent.swapaxes(1, 2), out.swapaxes(1, 2)
    # The softmax's gradient is its weights times what is left of the mean that they give.
    mean = _shared((widen(cotangent) * widen(out)).sum(axis=-1, keepdims=True), share)
    cotangent = _shared(widen(cotangent), share).astype(values.dtype)
    to_weights = _row_major(wide_einsum("bhqc,bhkc->bhqk", cotangent, values))
    to_scores = (widen(weights) * (to_weights - mean)).astype(query.dtype)
    to_query = wide_einsum("bhqk,bhkc->bhqc", to_scores, keys) / math.sqrt(query.shape[-1])
    to_keys = wide_einsum("bhqk,bhqc->bhkc", to_scores, query)
    to_values = wide_einsum("bhqk,bhqc->bhkc", weights, cotangent)
    gradients = to_query, to_keys, to_values
    return tuple(x.astype(query.dtype).swapaxes(1, 2) for x in gradients)


attend.defvjp(_forward, _backward)


def _heads_first(query, keys, values):
    """`[batch, heads, tokens, channels]`, the query scaled."""
    query = query / math.sqrt(query.shape[-1])
    return [x.swapaxes(1, 2) for x in (query, keys, values)]


def _shared(x: jax.Array, share: jax.Array | None) -> jax.Array:
    return x if share is None else x * share


def _row_major(x: jax.Array) -> jax.Array:
    # Left alone XLA for TPUs turns scores batch-last for the softmax, and back for the products.
    layout = Layout(major_to_minor=tuple(range(x.ndim)))

    def pinned(x):
        # On each device for itself: scores of a single head would be gathered to be pinned.
        return on_each_device(
            lambda x: with_layout_constraint(x, layout), lambda axes: (jax.P(axes),), x
        )

    return jax.lax.platform_dependent(x, tpu=pinned, default=lambda x: x)


def project(linear: nnx.Linear, x: jax.Array, parts: int, heads: int) -> list[jax.Array]:
    """What one linear layer gives as queries, keys, values: `[batch, tokens, heads, channels]`.

    On TPUs a product for each part, because there slices of one product's result are copies, and
    their gradients joined again are another.

    Args:
      linear: the layer; its outputs are part by part, head by head.
      x: `[batch, tokens, features]`.
      parts: how many.
      heads: attention heads.
    """
    kernel = linear.kernel[...].astype(x.dtype)
    bias = linear.bias[...].astype(x.dtype)

    def together(x, kernel, bias):
        return jnp.split(x @ kernel + bias, parts, -1)

    def each(x, kernel, bias):
        kernels, biases = jnp.split(kernel, parts, -1), jnp.split(bias, parts, -1)
        return [x @ k + b for k, b in zip(kernels, biases, strict=True)]

    projected = jax.lax.platform_dependent(x, kernel, bias, tpu=each, default=together)
    return [part.reshape(*x.shape[:2], heads, -1) for part in projected]
