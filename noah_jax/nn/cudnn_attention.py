"""Scaled dot-product attention by cuDNN, which NVIDIA GPUs compute without storing the scores."""

import functools
import os
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from noah_jax.errors import InputError
from noah_jax.nn.per_device import on_each_device, shards_of_batch

Implementation: TypeAlias = Literal["cudnn", "xla"]

_DTYPES = (jnp.bfloat16, jnp.float16)
_AMPERE = (8, 0)  # the first compute capability with these kernels
_CHOICE = "NOAH_ATTENTION"  # the environment variable that turns cuDNN off


def cudnn_attend(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    implementation: Implementation = "cudnn",
) -> jax.Array:
    """Computes attention by `jax.nn.dot_product_attention`, on each device for its own images.

    cuDNN's backward pass refuses odd numbers of tokens, so they are padded to even ones and their
    true numbers are passed along. It has no second derivatives.

    Args:
      query: `[batch, tokens, heads, channels]`.
      keys: `[batch, other tokens, heads, channels]`.
      values: `[batch, other tokens, heads, channels]`.
      implementation: That of `jax.nn.dot_product_attention`; "xla" runs everywhere.

    Returns:
      `[batch, tokens, heads, channels]`.
    """
    run = functools.partial(_attend, implementation=implementation)
    return on_each_device(run, lambda axes: (jax.P(axes),) * 3, query, keys, values)


def _attend(
    query: jax.Array, keys: jax.Array, values: jax.Array, *, implementation: Implementation
) -> jax.Array:
    batch, tokens, *_ = query.shape
    others = keys.shape[1]
    query_lengths, key_lengths = None, None
    if tokens % 2 or others % 2:
        query_lengths = jnp.full(batch, tokens, jnp.int32)
        key_lengths = jnp.full(batch, others, jnp.int32)
    out = jax.nn.dot_product_attention(
        *(_even(x) for x in (query, keys, values)),
        query_seq_lengths=query_lengths,
        key_value_seq_lengths=key_lengths,
        implementation=implementation,
    )
    return out[:, :tokens]


def _even(x: jax.Array) -> jax.Array:
    """Pads an odd number of tokens, the second axis, by one token of zeros."""
    return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))


def cudnn_takes(query: jax.Array, keys: jax.Array) -> bool:
    """Returns whether `cudnn_attend` computes attention of such queries and keys on NVIDIA GPUs.

    It does in bfloat16 and float16, if cuDNN can be loaded here, any GPU that is here is an Ampere
    or newer, JAX takes the shapes, and the devices divide the images. Inside a `jax.shard_map` it
    does not, because JAX's operation does not say over which axes its results differ.
    `NOAH_ATTENTION=xla` in the environment says no to all.

    Args:
      query: `[batch, tokens, heads, channels]`.
      keys: `[batch, other tokens, heads, channels]`.

    Raises:
      InputError: If `NOAH_ATTENTION` is neither "auto" nor "xla".
    """
    choice = os.environ.get(_CHOICE) or "auto"
    if choice not in ("auto", "xla"):
        raise InputError(f"{_CHOICE} in the environment must be auto or xla, got {choice!r}")
    if choice == "xla" or query.ndim != 4 or query.dtype not in _DTYPES:
        return False
    if not all(isinstance(size, int) for x in (query, keys) for size in x.shape):
        return False  # symbolic, as in `jax.export`
    manual = jax.sharding.get_abstract_mesh().manual_axes
    if manual or query.shape[0] % shards_of_batch():
        return False
    _, tokens, heads, channels = query.shape
    return _refusal(tokens, keys.shape[1], heads, channels, query.dtype) is None


def cudnn_is_missing() -> bool:
    """Returns whether cuDNN cannot be loaded here."""
    return _refusal(64, 64, 1, 64, jnp.dtype(jnp.bfloat16)) is not None


@functools.cache
def _refusal(tokens: int, others: int, heads: int, channels: int, dtype: jnp.dtype) -> str | None:
    """Returns why JAX does not take attention of these sizes with cuDNN; `None` if it does."""
    if jax.default_backend() == "gpu":
        capability = jax.local_devices()[0].compute_capability
        if tuple(map(int, capability.split("."))) < _AMPERE:
            return f"compute capability {capability}"
    query, others_ = (
        jax.ShapeDtypeStruct((1, length, heads, channels), dtype) for length in (tokens, others)
    )

    def gradient(query: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        return jax.grad(lambda q: _attend(q, keys, values, implementation="cudnn").sum())(query)

    try:
        # JAX says which shapes it takes, and whether it finds cuDNN, as it traces.
        jax.eval_shape(gradient, query, others_, others_)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        return str(error)
    return None
