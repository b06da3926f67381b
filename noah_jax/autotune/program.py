"""Searches block sizes of the head's GPU kernels: checks them, times them, stores the fastest."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from noah_jax.aot.head_shape import HeadShape, head_shape
from noah_jax.compilation import DEFAULT_CACHE, enable_compilation_cache
from noah_jax.console import say
from noah_jax.errors import InputError, one_line
from noah_jax.heads.noah import Projection, gpu_tuned, poca
from noah_jax.heads.noah.gpu_blocks import BlockSizes
from noah_jax.heads.noah.gpu_model import kernel_costs, milliseconds
from noah_jax.heads.noah.gpu_plan import default_blocks, measured_blocks
from noah_jax.heads.noah.operands import ChannelSplit, PocaShape
from noah_jax.models import create_model
from noah_jax.timing import Call, take_turns

_SECONDS = 0.05  # duration of a turn
_MOST_OF_A_WAY = 6  # candidates of a head, with and without products
_MOST_REGISTERS = 224  # of the 255 of a thread
# Largest difference from the float32 definition, over the norm of each array.
_TOLERANCE = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 3e-2}
_REASON = 120  # characters


def autotune(models: Sequence[str], *, batch: int, dtype: str, rounds: int) -> None:
    """Finds and stores block sizes for the heads of some models.

    Args:
      models: Names of registered models with the NOAH head.
      batch: Images on one GPU.
      dtype: Dtype of the features.
      rounds: Measurements of each candidate.

    Raises:
      InputError: If there is no NVIDIA GPU, or a model has no NOAH head.
    """
    heads = {name: _head(name) for name in models}
    if jax.default_backend() != "gpu":
        raise InputError(
            "autotune times kernels on an NVIDIA GPU, and JAX finds none here:"
            f" its devices are {jax.default_backend()}s"
        )
    enable_compilation_cache(DEFAULT_CACHE)
    for name, head in heads.items():
        shape = poca_shape(head, batch, dtype)
        say(f"{name}: {shape.positions} positions of {head.channels} channels, {dtype}, {batch}")
        target = gpu_tuned.store(shape, batch, tune_head(head, shape, rounds=rounds))
        say(f"  stored in {target}")


def _head(name: str) -> HeadShape:
    model = create_model(name)
    if model.arguments["head"] != "noah":
        raise InputError(f"{name} has no NOAH head; did you mean noah_{name}")
    return head_shape(model)


def poca_shape(head: HeadShape, batch: int, dtype: str) -> PocaShape:
    """Returns what a plan is made for."""
    return PocaShape(
        batch,
        head.spatial,
        head.channels,
        head.head_num,
        head.num_classes,
        jnp.dtype(dtype),
        ChannelSplit(head.key_ratio),
        head.dropout,
        head.spatial_major,
    )


def candidates(shape: PocaShape) -> list[BlockSizes]:
    """Returns the block sizes to try: what "auto" takes, what was measured, what is predicted."""
    default = default_blocks(shape, shape.batch)

    def predicted(blocks: BlockSizes) -> tuple[float, str]:
        return sum(milliseconds(shape, shape.batch, blocks)), str(blocks)

    others = {
        blocks
        for blocks in _variants(default)
        if blocks != default and _registers(shape, blocks) <= _MOST_REGISTERS
    }
    chosen = [default, *({measured_blocks(shape, shape.batch)} - {default})]
    for products in (False, True):  # the model knows least about these
        ways = [blocks for blocks in others if blocks.products == products]
        chosen += sorted(ways, key=predicted)[:_MOST_OF_A_WAY]
    return list(dict.fromkeys(chosen))


def _registers(shape: PocaShape, blocks: BlockSizes) -> int:
    """Returns how many registers a thread needs for weights and accumulators alone."""
    costs = kernel_costs(shape, shape.batch, blocks).values()
    return max(cost.register_bytes for cost in costs) // (4 * 32 * blocks.warps)


def _variants(default: BlockSizes) -> Iterator[BlockSizes]:
    for classes in {default.classes, min(2 * default.classes, 128)}:
        for warps in (4, 8):
            for images in (1, 4, 8):
                for products in (False, True):
                    yield dataclasses.replace(
                        default,
                        classes=classes,
                        warps=warps,
                        forward_images=images,
                        products=products,
                    )


def tune_head(
    head: HeadShape,
    shape: PocaShape,
    *,
    rounds: int,
    implementation: str = "gpu",
    tried: Sequence[BlockSizes] | None = None,
) -> dict[str, Any]:
    """Times block sizes on one head.

    Args:
      head: Shape of the head.
      shape: What plans are made for.
      rounds: Measurements of each candidate.
      implementation: Row of `noah_jax.heads.noah.poca.ROWS` that takes the block sizes.
      tried: The candidates; by default those of `candidates`.

    Returns:
      The fields of the fastest `BlockSizes`.

    Raises:
      InputError: If no candidate compiles and agrees with the definition.
    """
    operands = _operands(head, shape)
    run = functools.partial(_both_passes, head)
    with jax.default_matmul_precision("highest"):
        exact = jax.jit(functools.partial(run, "reference", None))
        expected = jax.tree.map(np.asarray, exact(*(x.astype(jnp.float32) for x in operands)))
    calls: dict[BlockSizes, Call] = {}
    for blocks in candidates(shape) if tried is None else tried:
        compiled = jax.jit(functools.partial(run, implementation, dataclasses.asdict(blocks)))
        refusal = _refusal(compiled, operands, expected, _TOLERANCE[shape.dtype.name])
        if refusal:
            say(f"  {_label(blocks)}: left out, {refusal}")
        else:
            calls[blocks] = Call(functools.partial(compiled, *operands), jax.block_until_ready)
    if not calls:
        raise InputError("no block sizes compile and agree with the definition")
    timings = take_turns(calls, rounds=rounds, seconds=_SECONDS)
    for blocks, timing in sorted(timings.items(), key=lambda item: item[1].median):
        say(f"  {_label(blocks)}: {1e3 * timing.median:.3f} ms, spread {timing.spread:.0%}")
    return dataclasses.asdict(min(timings, key=lambda blocks: timings[blocks].median))


def _label(blocks: BlockSizes) -> str:
    return ", ".join(f"{name} {size}" for name, size in dataclasses.asdict(blocks).items())


def _operands(head: HeadShape, shape: PocaShape) -> tuple[jax.Array, ...]:
    """Makes features and the weights, kernel and bias of query and value."""
    random = np.random.RandomState(0)

    def normal(*size: int, scale: float = 1.0) -> jax.Array:
        return jnp.asarray(scale * random.standard_normal(size), jnp.float32)

    weights = []
    for channels in shape.block_channels:
        kernel = normal(head.head_num, channels, head.num_classes, scale=channels**-0.5)
        weights += [kernel, normal(head.head_num, head.num_classes)]
    features = normal(shape.batch, *head.spatial, head.channels)
    return features.astype(shape.dtype), *weights


def _both_passes(
    head: HeadShape, implementation: str, sizes: dict[str, Any] | None, *operands: jax.Array
) -> Any:
    """Computes logits and all gradients; the cotangent depends on the logits."""

    def compute(features: jax.Array, *weights: jax.Array) -> jax.Array:
        return poca(
            features,
            Projection(*weights[:2]),
            Projection(*weights[2:]),
            key_ratio=head.key_ratio,
            dropout=head.dropout,
            dropout_key=jax.random.key(0) if head.dropout else None,
            implementation=implementation,
            block_sizes=sizes,
        )

    logits, pull = jax.vjp(compute, *operands)
    return logits, pull(jnp.sin(logits))


def _refusal(
    compiled: Callable[..., Any], operands: tuple[jax.Array, ...], expected: Any, tolerance: float
) -> str:
    """Returns why a candidate is not timed: it does not compile, or computes other numbers."""
    try:
        actual = compiled(*operands)
    except (RuntimeError, ValueError, NotImplementedError) as error:  # XLA's are RuntimeErrors
        return one_line(error, _REASON)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        difference = float(np.linalg.norm(np.asarray(x, np.float32) - y))
        if not difference <= tolerance * max(float(np.linalg.norm(y)), 1e-6):
            return f"its numbers differ from the definition by {difference:.1e}"
    return ""
