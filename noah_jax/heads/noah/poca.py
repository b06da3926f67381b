"""The NOAH head: pairwise object category attentions (POCA).

NOAH (Non-glObal Attentive Head) takes the place of global pooling and the linear
layer. For every block `n` and class `c` one part of the channels (the query) gives a
softmax attention over the positions of the feature map, the other part (the value)
gives the evidence that is weighed by it:

    logits[b, c] = sum_n sum_l softmax_l(query[b, n, c, :])[l] * value[b, n, c, l]

`poca` is the pure function, `attention` gives the attention of chosen classes.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from noah_jax.errors import InputError
from noah_jax.heads.noah.chunked import Operands, Weights, chunked_poca
from noah_jax.heads.noah.cpu import looped_poca
from noah_jax.heads.noah.gpu import gpu_plan, gpu_poca
from noah_jax.heads.noah.tpu import pallas_poca, sharded_poca, tpu_plan
from noah_jax.heads.noah.tpu_map import map_plan, sharded_map_poca
from noah_jax.nn import dropout as dropouts
from noah_jax.nn.dtypes import wide_einsum

# How `poca` is computed.
IMPLEMENTATIONS = ("auto", "xla", "pallas", "reference")


class Projection(NamedTuple):
    """Weights of a 1x1 (grouped) convolution that gives `head_num * num_classes` channels.

    Attributes:
      kernel: `[head_num, in_features, num_classes]`; `in_features` are the channels one
        block sees: its own share with `head_split`, all of the part without.
      bias: `[head_num, num_classes]`.
    """

    kernel: jax.Array
    bias: jax.Array


def split_channels(
    channels: int,
    *,
    head_num: int,
    key_ratio: float,
    head_split: bool = True,
    kv_split: bool = True,
) -> tuple[int, int]:
    """How many channels feed the query and the value.

    Args:
      channels: channels of the feature map.
      head_num: N, the number of blocks.
      key_ratio: r, the share of the channels that feeds the query, in (0, 1).
      head_split: whether each block sees only its own share of the channels.
      kv_split: whether query and value see different channels; if not, both see all.

    Returns:
      `(query_channels, value_channels)`.

    Raises:
      ValueError: if the channels cannot be split so; says which values would fit.
    """
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


def _project(part: jax.Array, kernel: jax.Array, head_split: bool) -> jax.Array:
    """`[batch, positions, channels]` -> float32 `[batch, head_num, classes, positions]`."""
    if not head_split:
        equation = "bld,ndk->bnkl"
    else:
        part = part.reshape(*part.shape[:2], kernel.shape[0], kernel.shape[1])
        equation = "blnd,ndk->bnkl"
    return wide_einsum(equation, part, kernel)


def _parts(
    features: jax.Array,
    head_num: int,
    key_ratio: float,
    head_split: bool,
    kv_split: bool,
) -> tuple[jax.Array, jax.Array]:
    """Query part and value part of the features, each `[batch, positions, channels]`."""
    if features.ndim < 2:
        raise InputError(
            f"features must be [batch, *spatial, channels], got shape {features.shape}"
        )
    query_channels, _ = split_channels(
        features.shape[-1],
        head_num=head_num,
        key_ratio=key_ratio,
        head_split=head_split,
        kv_split=kv_split,
    )
    positions = math.prod(features.shape[1:-1])
    if not positions:
        raise InputError(f"features have no positions to attend to, got shape {features.shape}")
    flat = features.reshape(features.shape[0], positions, features.shape[-1])
    if not kv_split:
        return flat, flat
    return flat[..., :query_channels], flat[..., query_channels:]


def _check_projection(
    name: str, projection: Projection, channels: int, head_num: int, head_split: bool
) -> None:
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


def poca(
    features: jax.Array,
    query: Projection,
    value: Projection,
    *,
    key_ratio: float = 0.5,
    head_split: bool = True,
    kv_split: bool = True,
    dropout: float = 0.0,
    dropout_key: dropouts.Key | None = None,
    implementation: str = "auto",
    spatial_major: bool = False,
) -> jax.Array:
    """Pairwise object category attentions.

    The softmax runs over positions, so the query's bias cancels: it is not computed, and
    its gradient is exactly zero. Scores, softmax and sums are float32 whatever the
    features' dtype is.

    Args:
      features: `[batch, *spatial, channels]`, any number of spatial dimensions.
      query: weights of the query, `(kernel, bias)`; see `Projection`.
      value: weights of the value, `(kernel, bias)`.
      key_ratio: r, the share of the channels that feeds the query.
      head_split: whether each block sees only its own share of the channels.
      kv_split: whether query and value see different channels.
      dropout: rate of the dropout on the values, in [0, 1).
      dropout_key: random key of the dropout; `None` switches it off (evaluation).
      implementation: "reference" is the definition, which holds the scores of all classes at
        once; "xla" goes through the classes in chunks and has a backward pass of its own (no
        forward-mode differentiation); "pallas" is a kernel for TPUs (emulated on CPUs, slowly)
        or NVIDIA GPUs that keeps the scores on the chip, and "xla" where the shapes do not
        tile or fit; its second derivatives are refused. "auto" takes "pallas" for bfloat16 on
        TPUs, else "xla": nobody has timed the kernel on a GPU. A kernel cannot be partitioned
        by the compiler: on several devices it is taken only under `jax.set_mesh` (or
        `jax.sharding.use_abstract_mesh`), and splits the batch over the whole mesh. All give
        the same numbers, dropout's masks included.
      spatial_major: whether the features `[batch, rows, columns, channels]` come from
        convolutions, so that XLA for TPUs lays them out positions first; a kernel then takes
        them so (without dropout, and where channels are split), or else batch first, and what
        lies otherwise is copied.

    Returns:
      float32 logits, `[batch, num_classes]`.

    Raises:
      ValueError: if channels, ratio and weights do not fit one another.
    """
    query, value = Projection(*query), Projection(*value)
    head_num = query.kernel.shape[0]
    query_part, value_part = _parts(features, head_num, key_ratio, head_split, kv_split)
    _check_projection("query", query, query_part.shape[-1], head_num, head_split)
    _check_projection("value", value, value_part.shape[-1], head_num, head_split)
    if not 0 <= dropout < 1:
        raise InputError(f"dropout must lie in [0, 1), got {dropout}")

    if implementation not in IMPLEMENTATIONS:
        raise InputError(
            f"implementation must be one of {', '.join(IMPLEMENTATIONS)}, got {implementation!r}"
        )
    seeds = None
    if dropout and dropout_key is not None:
        seeds = dropouts.seeds_of(dropout_key, len(features))
    if implementation == "reference":
        return _reference(query_part, value_part, query, value, seeds, head_split, dropout)
    split = functools.partial(
        _operands, key_ratio=key_ratio, head_split=head_split, kv_split=kv_split
    )
    # Every form splits the map itself: one that takes it whole has no gradient of parts to add.
    forms = {
        "cpu": functools.partial(
            _in_loop, head_split=head_split, kv_split=kv_split, dropout=dropout
        ),
        "default": functools.partial(_in_chunks, split, dropout),
    }
    weights = Weights(query.kernel, value.kernel, value.bias)
    rate = 0.0 if seeds is None else dropout
    as_map = features if spatial_major and not rate else None
    everywhere = implementation == "pallas"
    if everywhere or (implementation == "auto" and features.dtype == jnp.bfloat16):
        shapes = jax.eval_shape(split, features, weights)
        platforms = {"cpu": True, "tpu": False} if everywhere else {"tpu": False}
        forms |= _kernels(as_map, split, shapes, rate, platforms)
        if everywhere:
            forms |= _gpu_kernel(split, shapes, rate)
    return jax.lax.platform_dependent(features, weights, seeds, **forms)


def _in_loop(features, weights, seeds, **options):
    positions = math.prod(features.shape[1:-1])
    flat = features.reshape(features.shape[0], positions, features.shape[-1])
    return looped_poca(flat, weights, seeds, **options)


def _in_chunks(split, dropout, features, weights, seeds):
    return chunked_poca(split(features, weights), seeds, dropout=dropout)


def _kernels(as_map, split, operands, rate, platforms):
    """What computes the head by platform (which says whether it is emulated), if shapes fit.

    From the map where there is one to take whole, or else from its parts.
    """
    kernels = {}
    for name, interpret in platforms.items():
        plan = None if as_map is None else map_plan(as_map, operands, interpret=interpret)
        if plan is not None:
            kernels[name] = functools.partial(_from_map, plan)
            continue
        plan = tpu_plan(operands, dropout=rate, interpret=interpret)
        if plan is not None:
            kernels[name] = functools.partial(_from_parts, pallas_poca, plan, split)
    return kernels


def _gpu_kernel(split, operands, rate):
    plan = gpu_plan(operands, dropout=rate)
    return {} if plan is None else {"cuda": functools.partial(_from_parts, gpu_poca, plan, split)}


def _from_map(plan, features, weights, _):
    return sharded_map_poca(plan, features, weights)


def _from_parts(kernel, plan, split, features, weights, seeds):
    return sharded_poca(kernel, plan, split(features, weights), seeds)


def _reference(query_part, value_part, query, value, seeds, head_split, dropout):
    """The definition, on whole arrays."""
    weights = jax.nn.softmax(_project(query_part, query.kernel, head_split), axis=-1)
    values = _project(value_part, value.kernel, head_split)
    bias = value.bias.astype(values.dtype)
    if seeds is None:
        # The weights sum to one over the positions, so the bias passes through unchanged.
        return (weights * values).sum((1, 3)) + bias.sum(axis=0)
    values = values + bias[..., None]
    _, head_num, classes, positions = values.shape
    rows = dropouts.row_seeds(seeds, head_num, classes)[..., None]
    keep = dropouts.kept(rows, jnp.arange(positions, dtype=jnp.int32), dropout)
    values = jnp.where(keep, values / (1 - dropout), 0)
    return (weights * values).sum((1, 3))


def _operands(features, weights, *, key_ratio, head_split, kv_split):
    """What the forms compute with that take the map in parts."""
    head_num = len(weights.query_kernel)
    groups = head_num if head_split else 1

    def grouped(part):
        shape = (*part.shape[:2], groups, part.shape[2] // groups)
        return part.reshape(shape).transpose(2, 0, 1, 3)

    parts = _parts(features, head_num, key_ratio, head_split, kv_split)
    return Operands(*map(grouped, parts), *weights)


def attention(
    features: jax.Array,
    query: Projection,
    classes: jax.Array,
    *,
    key_ratio: float = 0.5,
    head_split: bool = True,
    kv_split: bool = True,
) -> jax.Array:
    """Where the head looks for the chosen classes.

    Only the chosen classes are computed.

    Args:
      features: `[batch, *spatial, channels]`.
      query: weights of the query, `(kernel, bias)`.
      classes: class indices, `[m]` for the same classes in every image or `[batch, m]`.
      key_ratio: see `poca`.
      head_split: see `poca`.
      kv_split: see `poca`.

    Returns:
      float32 `[batch, head_num, m, *spatial]`; sums to one over the spatial dimensions.

    Raises:
      ValueError: on indices of another shape, or a concrete index out of range.
    """
    query = Projection(*query)
    head_num, _, num_classes = query.kernel.shape
    part, _ = _parts(features, head_num, key_ratio, head_split, kv_split)
    _check_projection("query", query, part.shape[-1], head_num, head_split)
    classes = _check_classes(classes, num_classes, features)
    weights = jax.nn.softmax(_project_chosen(part, query.kernel, classes, head_split), axis=-1)
    return weights.reshape(*weights.shape[:3], *features.shape[1:-1])


class Contributions(NamedTuple):
    """What the logits of chosen classes are made of; float32.

    `contributions` summed over blocks and positions, plus `bias` summed over blocks, are the
    logits. A logit's bias has no place: the attention sums to one over all of them.

    Attributes:
      attention: `[batch, head_num, m, *spatial]`; sums to one over the spatial dimensions.
      contributions: `[batch, head_num, m, *spatial]`, the attention times the value.
      bias: `[batch, head_num, m]`.
    """

    attention: jax.Array
    contributions: jax.Array
    bias: jax.Array


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
    """What every position contributes to the logits of the chosen classes.

    Only the chosen classes are computed.

    Args:
      features: `[batch, *spatial, channels]`.
      query: weights of the query, `(kernel, bias)`.
      value: weights of the value, `(kernel, bias)`.
      classes: class indices, `[m]` for the same classes in every image or `[batch, m]`.
      key_ratio: see `poca`.
      head_split: see `poca`.
      kv_split: see `poca`.

    Raises:
      ValueError: see `attention`.
    """
    value = Projection(*value)
    split = {"key_ratio": key_ratio, "head_split": head_split, "kv_split": kv_split}
    weights = attention(features, query, classes, **split)
    head_num, _, num_classes = value.kernel.shape
    _, part = _parts(features, head_num, key_ratio, head_split, kv_split)
    _check_projection("value", value, part.shape[-1], head_num, head_split)
    classes = _check_classes(classes, num_classes, features)
    values = _project_chosen(part, value.kernel, classes, head_split).reshape(weights.shape)
    bias = jnp.moveaxis(value.bias[:, classes], 0, -2)  # [..., N, m]
    bias = jnp.broadcast_to(bias, weights.shape[:3]).astype(weights.dtype)
    return Contributions(weights, weights * values, bias)


def _check_classes(classes: jax.Array, num_classes: int, features: jax.Array) -> jax.Array:
    classes = jnp.asarray(classes)
    if classes.ndim not in (1, 2) or not jnp.issubdtype(classes.dtype, jnp.integer):
        raise InputError(
            "classes must be integers of shape [m] or [batch, m],"
            f" got {classes.dtype} of shape {classes.shape}"
        )
    if classes.ndim == 2 and classes.shape[0] != features.shape[0]:
        raise InputError(
            f"classes of shape {classes.shape} give {classes.shape[0]} images,"
            f" the features hold {features.shape[0]}"
        )
    if not isinstance(classes, jax.core.Tracer) and classes.size:
        values = np.asarray(classes)  # of JAX's it would be traced
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= num_classes:
            raise InputError(f"classes must lie in 0..{num_classes - 1}, got {low}..{high}")
    return classes


def _project_chosen(
    part: jax.Array, kernel: jax.Array, classes: jax.Array, head_split: bool
) -> jax.Array:
    """What `_project` gives, of the chosen classes alone."""
    head_num = kernel.shape[0]
    kernel = kernel[..., classes]  # [N, D, m] or [N, D, batch, m]
    if head_split:
        part = part.reshape(*part.shape[:2], head_num, -1)
    equation = ("blnd" if head_split else "bld") + (",ndk" if classes.ndim == 1 else ",ndbk")
    return wide_einsum(equation + "->bnkl", part, kernel)
