"""Measures what the NOAH head costs beside a linear one.

Without a topology it times heads alone on this process's device, in float32, on the feature maps
of published models: the forward pass, and the forward pass with the gradients of all operands,
where the cotangent depends on the output. Where PyTorch is installed its head is timed too, on the
CPU. All take turns in one process, so that the machine's noise meets all. Beside them stands the
floor: the operations of the products, and the bytes that come in and go out.

With a topology it compiles whole train steps for TPUs or GPUs that need not be here; see
`compiled_steps`.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from noah_jax.aot.head_shape import HeadShape, head_shape
from noah_jax.aot.hlo import memory_stats
from noah_jax.aot.targets import topology_mesh
from noah_jax.benchmark import compiled_steps
from noah_jax.benchmark.pytorch_here import TORCH_IS_MISSING, torch_is_installed
from noah_jax.errors import InputError
from noah_jax.heads.noah import IMPLEMENTATIONS, Projection, poca
from noah_jax.models import create_model
from noah_jax.models.base import Model

MODELS = (
    "noah_resnet50",
    "noah_mobilenetv2_100",
    "noah_deit_tiny_patch16_224",
    "noah_deit_small_patch16_224",
    "noah_deit_base_patch16_224",
    "noah_deit_base_patch16_384",
    "noah_pvt_tiny",
)
_TARGET_MODELS = ("noah_deit_tiny_patch16_224",)
_HEADS = ("reference", "auto")
_BATCH, _TARGET_BATCH = 32, 128
_REST = 0.2  # seconds, in which the other library's threads come to rest
_AGREE = 1e-3  # largest difference of two heads' logits, over their standard deviation


# Calls of the forward pass and of both passes, with the temporary memory of each in bytes.
Contender = tuple[Callable[[], Any], Callable[[], Any], int | None, int | None]


class Cost(NamedTuple):
    """Cost of one head, as medians over the rounds.

    Attributes:
      forward: Seconds of a forward pass.
      both: Seconds of a forward and backward pass.
      forward_bytes: Temporary memory of a forward pass; `None` where it is unknown (PyTorch).
      both_bytes: Temporary memory of both passes, likewise.
    """

    forward: float
    both: float
    forward_bytes: int | None
    both_bytes: int | None


def benchmark_head(
    shape: HeadShape, heads: Sequence[str], *, batch: int, rounds: int, torch: bool
) -> dict[str, Cost]:
    """Returns the cost of each head, by its name.

    Args:
      shape: Shape of the head.
      heads: Implementations of the NOAH head to measure beside a linear head.
      batch: Number of images.
      rounds: Number of measurements of each head.
      torch: Whether to measure PyTorch's head too.

    Raises:
      InputError: If the heads' logits differ; their times would not be comparable.
    """
    features, query, value = _operands(shape, batch)
    contenders: dict[str, Contender] = {
        "linear": _compiled_calls(_linear, features, _linear_weights(shape))
    }
    head = functools.partial(poca, key_ratio=shape.key_ratio)
    for name in heads:
        call = functools.partial(head, implementation=name)
        contenders[name] = _compiled_calls(call, features, query, value)
    if torch:
        contenders["PyTorch"] = _torch_calls(shape, features, query, value)
    reference = functools.partial(head, implementation="reference")
    expected = np.asarray(jax.jit(reference)(features, query, value))
    for name, (forward, *_) in contenders.items():
        if name != "linear":
            error = np.abs(np.asarray(forward()) - expected).max() / expected.std()
            if not error <= _AGREE:
                raise InputError(f"{name}: the logits differ by {error:.1e} of their std")
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            for measured, seconds in zip(contender[:2], times[name], strict=True):
                time.sleep(_REST)
                jax.block_until_ready(measured())  # wakes the threads and warms up
                start = time.perf_counter()
                jax.block_until_ready(measured())
                seconds.append(time.perf_counter() - start)
    return {
        name: Cost(statistics.median(forward), statistics.median(both), *contenders[name][2:])
        for name, (forward, both) in times.items()
    }


def _operands(shape: HeadShape, batch: int) -> tuple[np.ndarray, Projection, Projection]:
    random = np.random.RandomState(0)
    query_channels = int(shape.channels * shape.key_ratio)

    def projection(channels: int) -> Projection:
        size = (shape.head_num, channels // shape.head_num, shape.num_classes)
        kernel, bias = random.standard_normal(size), random.standard_normal(size[::2])
        return Projection(jnp.float32(0.05 * kernel), jnp.float32(0.05 * bias))

    features = random.standard_normal((batch, *shape.spatial, shape.channels))
    query, value = projection(query_channels), projection(shape.channels - query_channels)
    return features.astype(np.float32), query, value


def _linear_weights(shape: HeadShape) -> np.ndarray:
    return np.full((shape.channels, shape.num_classes), 0.01, np.float32)


def _linear(features: jax.Array, kernel: jax.Array) -> jax.Array:
    return features.mean(tuple(range(1, features.ndim - 1))) @ kernel


def _compiled_calls(head: Callable, *operands: Any) -> Contender:
    """Returns calls of the forward pass and of both passes, with the temporary memory of each."""

    def both(*operands: Any) -> Any:
        logits, vjp = jax.vjp(head, *operands)
        return logits, vjp(jnp.sin(logits))

    operands = jax.device_put(operands)
    compiled = [jax.jit(f).lower(*operands).compile() for f in (head, both)]
    memory = [memory_stats(c).temp_size_in_bytes for c in compiled]
    forward, backward = (functools.partial(c, *operands) for c in compiled)
    return forward, backward, memory[0], memory[1]


def _torch_calls(
    shape: HeadShape, features: np.ndarray, query: Projection, value: Projection
) -> Contender:
    """Returns the original's head by its definition: two grouped 1x1 convolutions, a softmax."""
    import torch

    split = int(shape.channels * shape.key_ratio)
    x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(features, -1, 1)))
    weights = []
    for kernel, bias in (map(np.asarray, projection) for projection in (query, value)):
        kernel = kernel.transpose(0, 2, 1).reshape(-1, kernel.shape[1])[..., None, None]
        weights += [torch.tensor(kernel), torch.tensor(bias.reshape(-1))]
    operands = [x.requires_grad_(), *(w.requires_grad_() for w in weights)]

    def head(x: Any, *weights: Any) -> Any:
        convolve = functools.partial(torch.nn.functional.conv2d, groups=shape.head_num)
        scores = convolve(x[:, :split], *weights[:2]).flatten(2).softmax(-1)
        values = convolve(x[:, split:], *weights[2:]).flatten(2)
        return (scores * values).sum(-1).unflatten(1, (shape.head_num, -1)).sum(1)

    def forward() -> Any:
        with torch.inference_mode():
            return head(*operands).numpy()

    def both() -> None:
        logits = head(*operands)
        torch.autograd.grad(logits, operands, torch.sin(logits.detach()))

    return forward, both, None, None


def measure_and_print(args: argparse.Namespace) -> None:
    """Measures the heads that the options name and prints a table; see the program's help."""
    for name in args.heads or ():
        if name not in IMPLEMENTATIONS:
            raise InputError(f"--heads: one of {', '.join(IMPLEMENTATIONS)}, got {name!r}")
    mesh = topology_mesh(args.topology) if args.topology else None
    names = args.models or (_TARGET_MODELS if args.topology else MODELS)
    models = [create_model(name) for name in names]
    for model in models:
        if model.arguments["head"] != "noah":
            raise InputError(f"{model.name} has no NOAH head; did you mean noah_{model.name}")
    if mesh is None:
        _print_table(models, args.heads or _HEADS, args.batch or _BATCH, args.rounds)
        return
    shapes = {model.name: head_shape(model) for model in models}
    compiled_steps.print_table(
        mesh, args.topology, shapes, args.heads, args.batch or _TARGET_BATCH, args.depth
    )


def _print_table(models: list[Model], heads: Sequence[str], batch: int, rounds: int) -> None:
    torch = torch_is_installed()
    print(
        f"heads on {jax.devices()[0].device_kind}, float32, batch {batch}, medians of {rounds}"
        " rounds; floor of forward: operations of the products, bytes in and out"
    )
    columns = "forward ms", "with backward ms", "temporary MB", "with backward MB"
    print(f"{'':28}" + "".join(f"{name:>18}" for name in columns))
    for model in models:
        shape = head_shape(model)
        size = "x".join(map(str, (*shape.spatial, shape.channels)))
        floor = f"{shape.flops(batch) / 1e9:.2f} GFLOP, {shape.bytes(batch) / 1e6:.1f} MB"
        print(f"{model.name}, {size}: {floor}")
        costs = benchmark_head(shape, heads, batch=batch, rounds=rounds, torch=torch)
        for name, cost in costs.items():
            cells = [f"{1e3 * seconds:.1f}" for seconds in cost[:2]]
            cells += ["" if memory is None else f"{memory / 1e6:.1f}" for memory in cost[2:]]
            row = f"  {name:26}" + "".join(f"{cell:>18}" for cell in cells)
            print(row.rstrip(), flush=True)
    if not torch:
        print(TORCH_IS_MISSING)
