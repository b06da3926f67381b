"""Computes scaled dot-product attention for DeiT and PVT, and the projections before it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint

from noah_jax.nn.cudnn_attention import cudnn_attend, cudnn_takes
from noah_jax.nn.dtypes import wide_einsum, widen
from noah_jax.nn.per_device import on_each_device


def attend(
    query: jax.Array, keys: jax.Array, values: jax.Array, *, implementation: str = "auto"
) -> jax.Array:
    """Scaled dot-product attention; scores and softmax are at least float32.

    Args:
      query: `[batch, tokens, heads, channels]`.
      keys: `[batch, other tokens, heads, channels]`.
      values: `[batch, other tokens, heads, channels]`.
      implementation: "auto" takes cuDNN on NVIDIA GPUs where it applies, which has no second
        derivatives; see `noah_jax.nn.cudnn_attention`. "xla" takes plain operations everywhere.

    Returns:
      `[batch, tokens, heads, channels]`.
    """
    if implementation == "auto" and cudnn_takes(query, keys):
        return jax.lax.platform_dependent(
            query, keys, values, cuda=cudnn_attend, default=_plain_attend
        )
    return _plain_attend(query, keys, values)


def attention_weights(query: jax.Array, keys: jax.Array) -> jax.Array:
    """Computes the weights of scaled dot-product attention, for heads that use or show them.

    Args:
      query: `[batch, tokens, heads, channels]`.
      keys: `[batch, other tokens, heads, channels]`.

    Returns:
      `[batch, heads, tokens, other tokens]` of at least float32, which sums to one over the last
      axis.
    """
    query, keys, _ = _heads_first(query, keys, keys)
    return jax.nn.softmax(wide_einsum("bhqc,bhkc->bhqk", query, keys), axis=-1)


def query_weights(query: jax.Array, kernel: jax.Array, x: jax.Array) -> jax.Array:
    """Computes the attention weights of one query, without its keys.

    The keys are `x` times a kernel. A query's products with them are those of `x` with one vector,
    the kernel times the query: the numbers are the same, for as many multiply-adds on `x` as there
    are heads, not features.

    Args:
      query: `[batch, heads, channels]`.
      kernel: The keys' kernel, `[features, heads, channels]`. (Their bias would add the same to
        every score of a head, which the softmax does not see.)
      x: `[batch, tokens, features]`.

    Returns:
      `[batch, heads, tokens]` of at least float32, which sums to one over the tokens.
    """
    query = query / math.sqrt(query.shape[-1])
    directions = wide_einsum("bhc,dhc->bhd", query, kernel).astype(x.dtype)
    return jax.nn.softmax(wide_einsum("bld,bhd->bhl", x, directions), axis=-1)


@jax.custom_vjp
def _plain_attend(query: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """Computes attention by plain operations.

    It is written as batches of matrix products with the heads in front, which CPUs compute
    faster than `jax.nn.dot_product_attention`, whose heads stay beside the channels. The
    backward pass stores the weights in the compute dtype, and nothing else of their size.
    """
    return _attend(query, keys, values, train=False)[0]


def _forward(
    query: jax.Array, keys: jax.Array, values: jax.Array
) -> tuple[jax.Array, tuple[Any, ...]]:
    return _attend(query, keys, values, train=True)


def _attend(
    query: jax.Array, keys: jax.Array, values: jax.Array, *, train: bool
) -> tuple[jax.Array, tuple[Any, ...]]:
    operands = query, keys, values
    query, keys, values = _heads_first(*operands)
    scores = wide_einsum("bhqc,bhkc->bhqk", query, keys)
    if train:  # in training only, because `jax.export` refuses pinned layouts
        scores = _row_major(scores)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    inv_sum = 1 / weights.sum(axis=-1, keepdims=True)
    # The softmax divides whichever has fewer numbers, the weights or the result.
    not_applied: jax.Array | None = inv_sum
    if keys.shape[-2] < values.shape[-1]:
        weights, not_applied = weights * inv_sum, None
    weights = weights.astype(values.dtype)
    out = _scaled(wide_einsum("bhqk,bhkc->bhqc", weights, values), not_applied)
    out = out.astype(values.dtype).swapaxes(1, 2)
    if train:  # otherwise XLA stores it unrounded, at twice the size
        out = jax.lax.optimization_barrier(out)
    return out, (*operands, weights, not_applied, out)


def _backward(
    residuals: tuple[Any, ...], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    *operands, weights, inv_sum, out = residuals  # `inv_sum` is None if it is in the weights
    query, keys, values = _heads_first(*operands)
    cotangent, out = cotangent.swapaxes(1, 2), out.swapaxes(1, 2)
    # The softmax's gradient: the weights times the difference from their weighted mean.
    mean = _scaled((widen(cotangent) * widen(out)).sum(axis=-1, keepdims=True), inv_sum)
    cotangent = _scaled(widen(cotangent), inv_sum).astype(values.dtype)
    d_weights = _row_major(wide_einsum("bhqc,bhkc->bhqk", cotangent, values))
    d_scores = (widen(weights) * (d_weights - mean)).astype(query.dtype)
    d_query = wide_einsum("bhqk,bhkc->bhqc", d_scores, keys) / math.sqrt(query.shape[-1])
    d_keys = wide_einsum("bhqk,bhqc->bhkc", d_scores, query)
    d_values = wide_einsum("bhqk,bhqc->bhkc", weights, cotangent)
    d_query, d_keys, d_values = (
        x.astype(query.dtype).swapaxes(1, 2) for x in (d_query, d_keys, d_values)
    )
    return d_query, d_keys, d_values


_plain_attend.defvjp(_forward, _backward)


def _heads_first(
    query: jax.Array, keys: jax.Array, values: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`[batch, heads, tokens, channels]`, with the query scaled."""
    query = query / math.sqrt(query.shape[-1])
    return query.swapaxes(1, 2), keys.swapaxes(1, 2), values.swapaxes(1, 2)


def _scaled(x: jax.Array, factor: jax.Array | None) -> jax.Array:
    return x if factor is None else x * factor


def _row_major(x: jax.Array) -> jax.Array:
    # Without it XLA for TPUs transposes the scores to batch-last for the softmax, and back for
    # the products.
    layout = Layout(major_to_minor=tuple(range(x.ndim)))

    def pinned(x: jax.Array) -> jax.Array:
        # Each device pins its own shard; XLA would gather scores of a single head to pin them.
        return on_each_device(
            lambda x: with_layout_constraint(x, layout), lambda axes: (jax.P(axes),), x
        )

    return jax.lax.platform_dependent(x, tpu=pinned, default=lambda x: x)


def project(linear: nnx.Linear, x: jax.Array, parts: int, heads: int) -> list[jax.Array]:
    """Applies one linear layer that computes several of queries, keys and values.

    TPUs compute one product for each of them, because there the slices of one product's result
    are copies, and joining their gradients is another.

    Args:
      linear: The layer, with a bias. Its outputs are ordered by part, then by head.
      x: `[batch, tokens, features]`.
      parts: How many of queries, keys and values it computes.
      heads: Attention heads.

    Returns:
      For each part, `[batch, tokens, heads, channels]`.
    """
    assert linear.bias is not None
    kernel = linear.kernel[...].astype(x.dtype)
    bias = linear.bias[...].astype(x.dtype)

    def together(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> list[jax.Array]:
        return jnp.split(x @ kernel + bias, parts, -1)

    def each(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> list[jax.Array]:
        kernels, biases = jnp.split(kernel, parts, -1), jnp.split(bias, parts, -1)
        return [x @ k + b for k, b in zip(kernels, biases, strict=True)]

    projected = jax.lax.platform_dependent(x, kernel, bias, tpu=each, default=together)
    return [part.reshape(*x.shape[:2], heads, -1) for part in projected]
