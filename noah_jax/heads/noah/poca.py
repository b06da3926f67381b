"""Computes the logits of the NOAH head: pairwise object category attentions (POCA).

`poca` is the pure function. `ROWS` is the one table of its implementations: which of them runs
where, and how each can be asked for. Their arithmetic is defined by `reference.py`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from noah_jax import console
from noah_jax.errors import InputError
from noah_jax.heads.noah.chunked import chunked_plan, chunked_poca
from noah_jax.heads.noah.cpu import cpu_plan, cpu_poca
from noah_jax.heads.noah.gpu import gpu_poca
from noah_jax.heads.noah.gpu_plan import gpu_plan
from noah_jax.heads.noah.operands import (
    ChannelSplit,
    PocaInputs,
    PocaShape,
    Projection,
    Weights,
    check_features,
    check_projection,
)
from noah_jax.heads.noah.pallas_triton import TritonError
from noah_jax.heads.noah.reference import reference_plan, reference_poca, small_plan
from noah_jax.heads.noah.tpu import tpu_plan, tpu_poca
from noah_jax.heads.noah.tpu_map import tpu_map_plan, tpu_map_poca
from noah_jax.nn.arguments import check_rate
from noah_jax.nn.dropout import Key, seeds_of
from noah_jax.nn.mesh_axes import on_auto_axes


class Row(NamedTuple):
    """One implementation of the head.

    Attributes:
      platform: Platform on which the words choose it; "default" is every platform that has no
        fitting row of its own. Compiled kernels run on their platform alone, all others anywhere.
      auto_dtypes: Dtypes of the features for which "auto" may choose it; `None` for all.
      words: Which of the words "xla" and "pallas" may choose it.
      plan: `plan(shape, **block_sizes)` says how it would compute a `PocaShape`, or raises
        `InputError` if the shape does not fit.
      compute: `compute(plan, inputs)` gives the logits of `PocaInputs`.
      emulated: Whether Pallas emulates a kernel, slowly.
    """

    platform: str
    auto_dtypes: tuple[Any, ...] | None
    words: tuple[str, ...]
    plan: Callable[..., Any]
    compute: Callable[..., jax.Array]
    emulated: bool


# Dtypes for "auto".
_NEVER, _ALWAYS = (), None
_HALF, _ON_TPUS = (jnp.bfloat16, jnp.float16), (jnp.bfloat16, jnp.float32)
_BY_NAME, _KERNEL, _ANY = (), ("pallas",), ("xla", "pallas")  # words

# "auto", "xla" and "pallas" take, on every platform, the first row from the top that they may
# choose and whose plan fits the shape. The name of a row takes that row or fails.
# fmt: off
ROWS: dict[str, Row] = {
    # name                   platform   "auto"   words     plan            computed by     emulated
    "reference":         Row("default", _NEVER,  _BY_NAME, reference_plan, reference_poca, False),
    "tpu_map":           Row("tpu",     _ON_TPUS, _KERNEL,  tpu_map_plan,   tpu_map_poca,   False),
    "tpu":               Row("tpu",     _ON_TPUS, _KERNEL,  tpu_plan,       tpu_poca,       False),
    "gpu":               Row("cuda",    _HALF,   _KERNEL,  gpu_plan,       gpu_poca,       False),
    "small_reference":   Row("cuda",    _HALF,   _BY_NAME, small_plan,     reference_poca, False),
    "tpu_map_interpret": Row("cpu",     _NEVER,  _KERNEL,  tpu_map_plan,   tpu_map_poca,   True),
    "tpu_interpret":     Row("cpu",     _NEVER,  _KERNEL,  tpu_plan,       tpu_poca,       True),
    "gpu_interpret":     Row("cpu",     _NEVER,  _BY_NAME, gpu_plan,       gpu_poca,       True),
    "cpu":               Row("cpu",     _ALWAYS, _ANY,     cpu_plan,       cpu_poca,       False),
    "chunked":           Row("default", _ALWAYS, _ANY,     chunked_plan,   chunked_poca,   False),
}
# fmt: on
IMPLEMENTATIONS = ("auto", "xla", "pallas", *ROWS)


class Choice(NamedTuple):
    """What computes the head on one platform.

    Attributes:
      name: Name of the row.
      plan: Its plan.
    """

    name: str
    plan: Any


def choose(
    implementation: str, shape: PocaShape, block_sizes: Mapping[str, int] | None = None
) -> dict[str, Choice]:
    """Chooses the row that computes a head on each platform.

    Args:
      implementation: A word or the name of a row; see `poca`.
      shape: Shape of the head.
      block_sizes: See `poca`.

    Returns:
      The choices by platform; "default" is for every other platform.

    Raises:
      InputError: If there is no such implementation, or the row does not fit the shape.
    """
    if implementation not in IMPLEMENTATIONS:
        raise InputError(
            f"implementation must be one of {', '.join(IMPLEMENTATIONS)}, got {implementation!r}"
        )
    if implementation in ROWS:
        row = ROWS[implementation]
        try:
            plan = _plan(row, shape, block_sizes)
        except InputError as error:
            raise InputError(f"implementation={implementation!r} does not fit: {error}") from None
        bound = row.platform in ("tpu", "cuda")
        return {row.platform if bound else "default": Choice(implementation, plan)}
    if block_sizes:
        raise InputError(
            f"block_sizes are those of one implementation, such as 'chunked'; {implementation!r}"
            " may choose several"
        )
    choices: dict[str, Choice] = {}
    for name, row in ROWS.items():
        if implementation == "auto":
            asked = row.auto_dtypes is None or shape.dtype in row.auto_dtypes
        else:
            asked = implementation in row.words
        if row.platform in choices or not asked:
            continue
        try:
            choices[row.platform] = Choice(name, _plan(row, shape, None))
        except InputError as error:
            if isinstance(error, TritonError):
                _warn_of_missing_kernel(error)
            continue  # the next row that fits is taken
    return choices


def _warn_of_missing_kernel(error: TritonError) -> None:
    """Says that GPUs compute the head without their kernel, unless this program is for others."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    kind = jax.default_backend() if device is None else device.device_kind.lower()
    others = ("tpu",) if error.missing else ("tpu", "cpu")  # a CPU may refuse to compile for GPUs
    if not kind.startswith(others):
        console.warn_once(f"NVIDIA GPUs compute the NOAH head without its kernel: {error}")


def _plan(row: Row, shape: PocaShape, block_sizes: Mapping[str, int] | None) -> Any:
    options: dict[str, Any] = dict(block_sizes or {})
    if row.emulated:
        options["interpret"] = True
    return row.plan(shape, **options)


def poca(
    features: jax.Array,
    query: Projection,
    value: Projection,
    *,
    key_ratio: float = 0.5,
    head_split: bool = True,
    kv_split: bool = True,
    dropout: float = 0.0,
    dropout_key: Key | None = None,
    implementation: str = "auto",
    spatial_major: bool = False,
    block_sizes: Mapping[str, int] | None = None,
) -> jax.Array:
    """Computes pairwise object category attentions: the logits of the NOAH head.

    The first `key_ratio` of the channels feeds the query, the others the value. For every block
    `n` and class `c`, a 1x1 convolution gives a query and a value at every position `l` of the
    feature map; the softmax of the query over the positions weighs the value:

        logits[b, c] = sum_n sum_l softmax_l(query[b, n, c, :])[l] * value[b, n, c, l]

    See "NOAH: Learning Pairwise Object Category Attentions for Image Classification"
    (arXiv:2402.02377). The query's bias cancels in the softmax: it is not computed, and its
    gradient is exactly zero. Scores, softmax and sums are at least float32 whatever the dtype of
    the features.

    >>> import jax.numpy as jnp
    >>> from noah_jax import poca
    >>> features = jnp.ones((3, 7, 7, 16))
    >>> query = jnp.ones((2, 4, 5)), jnp.zeros((2, 5))  # 2 blocks, 4 channels each, 5 classes
    >>> value = jnp.ones((2, 4, 5)), jnp.zeros((2, 5))
    >>> poca(features, query, value)[0]  # every block adds the mean of 4 channels' sum
    Array([8., 8., 8., 8., 8.], dtype=float32)

    Args:
      features: `[batch, *spatial, channels]`, with any number of spatial dimensions.
      query: Weights of the query, `(kernel, bias)`; see `noah_jax.heads.noah.Projection`.
      value: Weights of the value, `(kernel, bias)`.
      key_ratio: r, the fraction of the channels that feeds the query, in (0, 1).
      head_split: Whether each block sees only its own channels.
      kv_split: Whether query and value see different channels; if not, both see all.
      dropout: Dropout rate on the values, in [0, 1).
      dropout_key: Random key of the dropout; `None` switches it off (evaluation).
      implementation: What computes the logits. All implementations give the same numbers, dropout
        masks included, but for rounding.

        - "auto": on TPUs the kernel if the features are bfloat16 or float32; on NVIDIA GPUs the
          kernel if they are bfloat16 or float16 or, if no kernel fits, "reference" while its
          arrays are small; else "xla".
        - "xla": a chunk of classes at a time (on CPUs, in loops), with a backward pass of its
          own; it has no forward-mode differentiation.
        - "pallas": a kernel that keeps the scores on the chip, for TPUs and NVIDIA GPUs; on CPUs
          the TPU kernel, emulated slowly; and "xla" if the shapes do not tile or fit. Its second
          derivatives are refused. The compiler cannot partition a kernel: on several devices it
          is used only under `jax.set_mesh` (or `jax.sharding.use_abstract_mesh`), where it splits
          the batch over the mesh's Auto axes, and over the Explicit ones over which any argument
          is sharded; or inside `jax.shard_map` over all axes, for the device's own images.
        - "reference": the definition, which holds the scores of all classes at once.
        - The name of a row of `noah_jax.heads.noah.poca.ROWS`, such as "tpu" or
          "gpu_interpret": that implementation, or an error if the shapes do not fit it.
      spatial_major: Whether the features `[batch, rows, columns, channels]` come from
        convolutions, so that XLA for TPUs lays them out with the spatial dimensions first. Without
        dropout, and with `head_split` and `kv_split`, the kernel then reads that layout directly;
        any other layout costs a copy.
      block_sizes: Sizes of the blocks that the named row works on: keyword arguments of its plan,
        such as `{"classes": 256}` for "chunked"; by default those that were found fast.

    Returns:
      Logits, `[batch, num_classes]`; float32 (float64 for float64 features).

    Raises:
      InputError: If channels, ratio and weights do not fit one another, or the implementation
        does not fit them; says what would.
    """
    split = ChannelSplit(key_ratio, head_split, kv_split)
    query, value = Projection(*query), Projection(*value)
    head_num = query.kernel.shape[0]
    query_channels, value_channels = check_features(split, features, head_num)
    check_projection("query", query, query_channels, head_num, head_split)
    check_projection("value", value, value_channels, head_num, head_split)
    check_rate("dropout", dropout)
    seeds = None
    if dropout and dropout_key is not None:
        seeds = seeds_of(dropout_key, features.shape[0])
    shape = PocaShape(
        batch=features.shape[0],
        spatial=features.shape[1:-1],
        channels=features.shape[-1],
        head_num=head_num,
        num_classes=query.kernel.shape[2],
        dtype=features.dtype,
        split=split,
        dropout=0.0 if seeds is None else dropout,
        spatial_major=spatial_major,
    )

    def compute(choice: Choice, features: jax.Array, weights: Weights, seeds: Any) -> jax.Array:
        inputs = PocaInputs(split, features, weights, seeds)
        return ROWS[choice.name].compute(choice.plan, inputs)

    def on_platform(*arrays: Any) -> jax.Array:
        # Which rows fit depends on the axes of the mesh here, inside `on_auto_axes`.
        computations = {
            platform: functools.partial(compute, choice)
            for platform, choice in choose(implementation, shape, block_sizes).items()
        }
        if list(computations) == ["default"]:
            return computations["default"](*arrays)
        return jax.lax.platform_dependent(*arrays, **computations)

    weights = Weights(query.kernel, value.kernel, value.bias)
    return on_auto_axes(on_platform, features, weights, seeds)
