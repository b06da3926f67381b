"""Measures whole train steps on this machine's first device.

The step is the training program's own, with SGD and without augmentation, on synthetic images that
lie on the device. Beside it stand timm's models with the same head in PyTorch, eager and compiled,
where both are installed and PyTorch has a device of the same kind. All steps of a backbone take
turns in one process. Memory is what a step takes in all: of ours the compiler's account, of
PyTorch's the peak of its allocator.
"""

import argparse
import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from noah_jax import distributed
from noah_jax.aot.head_shape import HeadShape, head_shape, noah_head
from noah_jax.aot.hlo import memory_stats
from noah_jax.benchmark import pytorch_here
from noah_jax.benchmark.tables import print_columns, print_heading, print_row
from noah_jax.benchmark.torch_step import FORMS, torch_step
from noah_jax.benchmark.train_step import PlainStep
from noah_jax.console import working
from noah_jax.errors import CompileError, InputError, one_line
from noah_jax.heads.noah import IMPLEMENTATIONS
from noah_jax.heads.registry import HEADS
from noah_jax.models import create_model
from noah_jax.models.base import Model
from noah_jax.timing import Call, Timing, take_turns
from noah_jax.train.throughput import peak_flops, train_flops

MODELS = (
    *("resnet50", "mobilenetv2_100", "deit_tiny_patch16_224", "deit_small_patch16_224"),
    *("deit_base_patch16_224", "pvt_tiny", "mixer_b16_224"),
)
_OURS = "noah_jax"
_SECONDS = 1.0  # duration of a turn
_REASON = 200  # characters of a reason that are printed
# What says that a step does not run here. Errors of XLA and of PyTorch are RuntimeErrors.
_REFUSALS = (InputError, NotImplementedError, RuntimeError)


class Contender(NamedTuple):
    """A train step to time.

    Attributes:
      call: One step.
      memory: Bytes that the step takes; `None` where they are unknown.
    """

    call: Call
    memory: int | None


class StepCost(NamedTuple):
    """Cost of a train step.

    Attributes:
      time: Times of a step.
      memory: Bytes that the step takes; `None` where they are unknown.
    """

    time: Timing
    memory: int | None


def benchmark_step(
    models: Mapping[str, Model],
    *,
    batch: int,
    rounds: int,
    torch: bool,
    compiler_options: Mapping[str, str | bool] | None = None,
) -> tuple[dict[tuple[str, str], StepCost], dict[tuple[str, str], str]]:
    """Measures the train steps of one backbone with several heads.

    Args:
      models: The models, by head.
      batch: Images a step.
      rounds: Number of measurements of each step.
      torch: Whether to measure timm's models too.
      compiler_options: XLA's options for our steps.

    Returns:
      The cost of each step, by head and by what computes it; and why the others do not run here.

    Raises:
      CompileError: If XLA does not compile one of our steps.
    """
    contenders: dict[tuple[str, str], Contender] = {}
    missing: dict[tuple[str, str], str] = {}
    device = pytorch_here.torch_device() if torch else None
    for head, model in models.items():
        contenders[head, _OURS] = _our_step(model, batch, compiler_options)
        if device is None or head not in ("linear", "noah"):
            continue
        shape = head_shape(model) if head == "noah" else None
        for form in FORMS:
            try:
                contenders[head, f"timm, {form}"] = _torch_step(model, shape, batch, form, device)
            except _REFUSALS as error:
                missing[head, f"timm, {form}"] = one_line(error, _REASON)
    calls = {name: contender.call for name, contender in contenders.items()}
    times = take_turns(calls, rounds=rounds, seconds=_SECONDS)
    costs = {name: StepCost(times[name], contenders[name].memory) for name in contenders}
    return costs, missing


def _our_step(
    model: Model, batch: int, compiler_options: Mapping[str, str | bool] | None
) -> Contender:
    step = PlainStep(model, distributed.make_mesh(jax.devices()[:1]), batch, compiler_options)
    try:
        compiled = step.compile()
    except jax.errors.JaxRuntimeError as error:
        raise CompileError(f"{model.name} does not compile: {one_line(error)}") from error
    stats = memory_stats(compiled)
    outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    memory = stats.argument_size_in_bytes + stats.temp_size_in_bytes + outputs
    state, images = step.state(), step.random_batch()

    def start() -> object:
        nonlocal state
        state, metrics = compiled(state, images)
        return metrics

    return Contender(Call(start, jax.block_until_ready), memory)


def _torch_step(
    model: Model, shape: HeadShape | None, batch: int, form: str, device: str
) -> Contender:
    dtype = model.arguments["dtype"]
    return Contender(*torch_step(model, shape, batch=batch, dtype=dtype, form=form, device=device))


def make_models(
    name: str, heads: Sequence[str], *, dtype: str, image_size: int | None
) -> dict[str, Model]:
    """Makes a backbone with several heads.

    Args:
      name: The backbone.
      heads: Kinds of heads, or implementations of the NOAH head.
      dtype: Compute dtype.
      image_size: Height and width of the images; `None` is the published size.
    """
    arguments = {"dtype": dtype, "image_size": image_size}
    models = {}
    for head in heads:
        if head in HEADS:
            models[head] = create_model(name, head=head, **arguments)
        else:
            shape = head_shape(create_model(name, head="noah", **arguments))
            models[head] = create_model(name, head=noah_head(shape, head, dtype), **arguments)
    return models


def measure_and_print(args: argparse.Namespace) -> None:
    """Measures the backbones and heads that the options name and prints a table."""
    known = dict.fromkeys(("linear", "noah", *IMPLEMENTATIONS, *HEADS))
    for head in args.heads:
        if head not in known:
            raise InputError(f"--heads: one of {', '.join(known)}, got {head!r}")
    names = [name.removeprefix("noah_") for name in args.models or MODELS]
    for name in names:
        create_model(name)  # complains of the last name before the first is measured
    torch = not args.without_pytorch and all(map(importlib.util.find_spec, ("torch", "timm")))
    if torch:  # else JAX takes most of a GPU's memory before PyTorch gets any
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    options = dict(args.compiler_options)
    chosen = "".join(f", {name}={value}" for name, value in options.items())
    print_heading(
        f"Train steps, {args.dtype}, batch {args.batch}, SGD{chosen}, medians of {args.rounds}"
        " rounds; spread: slowest minus fastest round, over the median"
    )
    print_columns(
        (
            *("backbone", "head", "by", "images/s", "ms", "spread", "memory GB", "MFU"),
            "time over linear",
        ),
        text=3,
    )
    reasons = []
    for name in names:
        models = make_models(name, args.heads, dtype=args.dtype, image_size=args.image_size)
        with working(f"compiling and timing the steps of {name}"):
            costs, missing = benchmark_step(
                models, batch=args.batch, rounds=args.rounds, torch=torch, compiler_options=options
            )
        for (head, by), cost in costs.items():
            linear = costs.get(("linear", by))
            print_row([name, head, by, *_cells(models[head], args.batch, cost, linear)])
        reasons += [f"{name}, {head}, {by}: {why}" for (head, by), why in missing.items()]
    for reason in reasons:
        print(f"not measured: {reason}")
    if not torch and not args.without_pytorch:
        print("PyTorch and timm are not both installed, so there is nothing to compare with")


def _cells(model: Model, batch: int, cost: StepCost, linear: StepCost | None) -> list[str]:
    """Returns the numbers of a row."""
    seconds = cost.time.median
    peak = peak_flops(jax.devices()[0].device_kind, model.arguments["dtype"])
    return [
        f"{batch / seconds:,.0f}" if batch > seconds else f"{batch / seconds:.2f}",
        f"{1e3 * seconds:.4g}",
        f"{100 * cost.time.spread:.1f} %",
        "" if cost.memory is None else f"{cost.memory / 1e9:.2f}",
        "" if peak is None else f"{100 * batch * train_flops(model) / seconds / peak:.1f} %",
        f"{100 * (cost.time.over(linear.time) - 1):+.1f} %" if linear else "",
    ]
