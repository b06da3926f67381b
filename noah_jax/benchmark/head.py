"""Measures what heads cost beside a linear one.

Without a topology it times heads alone on this process's device, on the feature maps of published
models: the forward pass, and the forward pass with the gradients of all operands, where the
cotangent depends on the output. Weights are float32, features have the dtype that is asked for.
Where PyTorch is installed, and has a device of the same kind, its head is timed too. All take turns
in one process, so that the machine's noise meets all. Beside them stands the floor: the operations
of the products, and the bytes that come in and go out.

With a topology it compiles whole train steps for TPUs or GPUs that need not be here; see
`compiled_steps`.
"""

import argparse
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from noah_jax.aot.head_shape import HeadShape, head_shape
from noah_jax.aot.hlo import memory_stats
from noah_jax.aot.targets import topology_mesh
from noah_jax.benchmark import compiled_steps, pytorch_here
from noah_jax.benchmark.head_kinds import head_size, registered_head
from noah_jax.benchmark.pytorch_here import TORCH_IS_MISSING, torch_is_installed
from noah_jax.benchmark.tables import print_columns, print_heading, print_row
from noah_jax.console import working
from noah_jax.errors import InputError, one_line
from noah_jax.heads.noah import IMPLEMENTATIONS, Projection, poca
from noah_jax.heads.registry import HEADS
from noah_jax.models import create_model
from noah_jax.models.base import Model
from noah_jax.nn.dtypes import wide_einsum, widen
from noah_jax.timing import Call, Timing, take_turns

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
_ACCELERATOR_HEADS = ("reference", "xla", "pallas", "auto")
_BATCH, _TARGET_BATCH = 32, 128
_SECONDS = 0.1  # duration of a turn
_REST = 0.2  # seconds, in which the other library's threads come to rest
# Largest difference of a head's logits from the float32 definition, over their standard deviation.
# Accelerators may round float32 products to 10 or 7 bits.
_AGREE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}
_AGREE_ON_ACCELERATORS = 5e-2
# What says that a head does not run here: it does not fit, is not for this platform, or needs more
# memory than there is. Errors of XLA and of PyTorch are RuntimeErrors.
_REFUSALS = (InputError, NotImplementedError, RuntimeError)
_REASON = 200  # characters of a reason that are printed


class Contender(NamedTuple):
    """A head to time.

    Attributes:
      forward: The forward pass.
      both: The forward and the backward pass.
      forward_bytes: Temporary memory of the forward pass; `None` where it is unknown.
      both_bytes: Temporary memory of both passes, likewise.
    """

    forward: Call
    both: Call
    forward_bytes: int | None
    both_bytes: int | None


class Cost(NamedTuple):
    """Cost of one head.

    Attributes:
      forward: Times of a forward pass.
      both: Times of a forward and backward pass.
      forward_bytes: Temporary memory of a forward pass; `None` where it is unknown.
      both_bytes: Temporary memory of both passes, likewise.
    """

    forward: Timing
    both: Timing
    forward_bytes: int | None
    both_bytes: int | None


def benchmark_head(
    shape: HeadShape,
    heads: Sequence[str],
    *,
    batch: int,
    rounds: int,
    torch: bool,
    dtype: str = "float32",
) -> tuple[dict[str, Cost], dict[str, str]]:
    """Measures heads of one shape.

    Args:
      shape: Shape of the head.
      heads: Kinds of heads, and implementations of the NOAH head, to measure beside a linear head.
      batch: Number of images.
      rounds: Number of measurements of each head.
      torch: Whether to measure PyTorch's head too.
      dtype: Dtype of the features.

    Returns:
      The cost of each head, by its name; and why the others do not run here, by name.

    Raises:
      InputError: If the logits of NOAH's implementations differ; their times would not be
        comparable.
    """
    features, query, value = operands = _operands(shape, batch)
    head = functools.partial(poca, key_ratio=shape.key_ratio)
    with jax.default_matmul_precision("highest"):
        exact = jax.jit(functools.partial(head, implementation="reference"))
        expected = np.asarray(exact(*operands))
    cast = features.astype(dtype)
    makers: dict[str, Callable[[], Contender]] = {}
    for name in heads:
        if name in HEADS:
            call, weights = registered_head(shape, name, dtype)
            makers[name] = functools.partial(_compiled, call, cast, weights)
        else:
            call = functools.partial(head, implementation=name)
            makers[name] = functools.partial(_compiled, call, cast, query, value)
    if torch:
        makers |= _torch_makers(shape, dtype, operands)
    contenders = {"linear": _compiled(_linear, cast, _linear_weights(shape))}
    missing = {}
    for name, make in makers.items():
        try:
            contender = make()
            logits = _to_numpy(contender.forward.start())
        except _REFUSALS as error:
            missing[name] = one_line(error, _REASON)
            continue
        difference = np.abs(logits - expected).max() / expected.std()
        if name not in HEADS and not difference <= _allowed_difference(dtype):
            raise InputError(f"{name}: the logits differ by {difference:.1e} of their std")
        contenders[name] = contender
    calls = {
        (name, passes): getattr(contender, passes)
        for name, contender in contenders.items()
        for passes in ("forward", "both")
    }
    times = take_turns(calls, rounds=rounds, seconds=_SECONDS, rest=_REST)
    costs = {
        name: Cost(times[name, "forward"], times[name, "both"], *contender[2:])
        for name, contender in contenders.items()
    }
    return costs, missing


def _to_numpy(logits: Any) -> np.ndarray:
    return np.asarray(logits if isinstance(logits, jax.Array) else logits.float().cpu())


def _allowed_difference(dtype: str) -> float:
    return _AGREE[dtype] if jax.default_backend() == "cpu" else _AGREE_ON_ACCELERATORS


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
    pooled = widen(features).mean(tuple(range(1, features.ndim - 1)))
    return wide_einsum("bd,dk->bk", pooled.astype(features.dtype), kernel)


def _compiled(head: Callable, *operands: Any) -> Contender:
    """Compiles both passes of a head for this process's device."""

    def both(*operands: Any) -> Any:
        logits, vjp = jax.vjp(head, *operands)
        return logits, vjp(jnp.sin(logits))

    operands = jax.device_put(operands)
    compiled = [jax.jit(f).lower(*operands).compile() for f in (head, both)]
    memory = [memory_stats(c).temp_size_in_bytes for c in compiled]
    forward, backward = (
        Call(functools.partial(c, *operands), jax.block_until_ready) for c in compiled
    )
    return Contender(forward, backward, memory[0], memory[1])


def _torch_makers(
    shape: HeadShape, dtype: str, operands: tuple[np.ndarray, Projection, Projection]
) -> dict[str, Callable[[], Contender]]:
    """Returns what makes PyTorch's contenders on this device, by name."""
    device = pytorch_here.torch_device()
    if device is None:
        return {}
    make = functools.partial(_torch_contender, shape, dtype, operands, device)
    makers: dict[str, Callable[[], Contender]] = {}
    makers["PyTorch"] = functools.partial(make, lambda head: head)
    if device == "cuda":  # on CPUs it needs a C++ compiler, and a minute

        def compiled(head: Callable) -> Callable:
            import torch

            return torch.compile(head)

        makers["torch.compile"] = functools.partial(make, compiled)
    return makers


def _torch_contender(
    shape: HeadShape,
    dtype: str,
    operands: tuple[np.ndarray, Projection, Projection],
    device: str,
    transform: Callable[[Callable], Callable],
) -> Contender:
    """Returns the original's head in PyTorch, as its definition says."""
    import torch

    features, *projections = operands
    kind = getattr(torch, dtype)
    placed = torch.from_numpy(np.ascontiguousarray(np.moveaxis(features, -1, 1)))
    tensors = [placed.to(device, kind)]
    for kernel, bias in (map(np.asarray, projection) for projection in projections):
        kernel = kernel.transpose(0, 2, 1).reshape(-1, kernel.shape[1])[..., None, None]
        tensors += [torch.tensor(x).to(device, kind) for x in (kernel, bias.reshape(-1))]
    for tensor in tensors:
        tensor.requires_grad_()

    def definition(x: Any, *weights: Any) -> Any:
        return pytorch_here.noah_logits(
            x,
            weights[:2],
            weights[2:],
            head_num=shape.head_num,
            query_channels=int(shape.channels * shape.key_ratio),
        )

    head = transform(definition)

    def forward() -> Any:
        with torch.inference_mode():
            return head(*tensors)

    def both() -> None:
        logits = head(*tensors)
        torch.autograd.grad(logits, tensors, torch.sin(logits.detach()))

    calls = [pytorch_here.torch_call(f, device) for f in (forward, both)]
    memory = [pytorch_here.peak_bytes(call, device) for call in calls]
    return Contender(calls[0], calls[1], memory[0], memory[1])


def measure_and_print(args: argparse.Namespace) -> None:
    """Measures the heads that the options name and prints a table; see the program's help."""
    for name in args.heads or ():
        if name not in (known := (*IMPLEMENTATIONS, *HEADS)):
            raise InputError(f"--heads: one of {', '.join(known)}, got {name!r}")
    if args.topology and args.dtype is not None:
        raise InputError("--dtype does not go with --topology, whose steps compute in bfloat16")
    if args.explain and not args.topology:
        raise InputError("--explain goes with --topology: XLA estimates cycles for TPUs alone")
    mesh = topology_mesh(args.topology) if args.topology else None
    names = args.models or (_TARGET_MODELS if args.topology else MODELS)
    models = [create_model(name) for name in names]
    # A kind of head needs a map alone; an implementation needs a model with NOAH.
    kinds_only = bool(args.heads) and set(args.heads) <= set(HEADS)
    for i, model in enumerate(models):
        if model.arguments["head"] != "noah":
            if not kinds_only:
                raise InputError(f"{model.name} has no NOAH head; did you mean noah_{model.name}")
            models[i] = create_model(model.name, head="noah")
    if mesh is None:
        on_cpu = jax.default_backend() == "cpu"
        heads = args.heads or (_HEADS if on_cpu else _ACCELERATOR_HEADS)
        dtype = args.dtype or "float32"
        _print_table(models, heads, args.batch or _BATCH, args.rounds, dtype)
        return
    shapes = {model.name: head_shape(model) for model in models}
    compiled_steps.print_table(
        mesh,
        args.topology,
        shapes,
        args.heads,
        args.batch or _TARGET_BATCH,
        depth=args.depth,
        explain=args.explain,
    )


def _print_table(
    models: list[Model], heads: Sequence[str], batch: int, rounds: int, dtype: str
) -> None:
    torch = torch_is_installed()
    print_heading(
        f"Heads alone, {dtype}, batch {batch}, medians of {rounds} rounds; spread: slowest minus"
        " fastest round, over the median; floor: operations of the products in NOAH's forward pass,"
        " and bytes in and out"
    )
    print_columns(
        (
            *("map", "head", "forward ms", "spread", "with backward ms", "spread"),
            *("with backward over linear", "temporary MB", "with backward MB"),
            *("parameters", "multiply-adds/M an image"),
        ),
        text=2,
    )
    reasons = []
    for model in models:
        shape = head_shape(model)
        size = "x".join(map(str, (*shape.spatial, shape.channels)))
        itemsize = jnp.dtype(dtype).itemsize
        gflop, megabytes = shape.flops(batch) / 1e9, shape.bytes(batch, itemsize) / 1e6
        floor = f"floor: {gflop:.2f} GFLOP, {megabytes:.1f} MB"
        print_row([f"{model.name}, {size}", floor, *[""] * 9])
        with working(f"compiling and timing the heads of {model.name}"):
            costs, missing = benchmark_head(
                shape, heads, batch=batch, rounds=rounds, torch=torch, dtype=dtype
            )
        for name, cost in costs.items():
            cells = ["", name]
            parameters, operations = head_size(shape, name if name in HEADS else "noah")
            for timing in (cost.forward, cost.both):
                cells += [f"{1e3 * timing.median:.3g}", f"{100 * timing.spread:.0f} %"]
            cells.append(f"{cost.both.over(costs['linear'].both):.2f}")
            cells += [
                "" if memory is None else f"{memory / 1e6:.1f}"
                for memory in (cost.forward_bytes, cost.both_bytes)
            ]
            cells += [f"{parameters:,}", f"{operations / 1e6:.2f}"]
            print_row(cells)
        reasons += [f"{model.name}, {name}: {reason}" for name, reason in missing.items()]
    for reason in reasons:
        print(f"not measured: {reason}")
    if not torch:
        print(TORCH_IS_MISSING)
