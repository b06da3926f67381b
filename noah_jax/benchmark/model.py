"""Compares a model with the NOAH head and the same backbone with a linear head, in evaluation.

Both are timed in one run on this process's device and take turns, so that the machine's noise
meets both. Latency is the median time of a call that waits for its result, with the images on the
device already. Throughput is the images of a batch over the latency. Memory is what the compiler
reserves: weights, images and logits, and temporary arrays. FLOPs are the multiply-adds of an image.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from noah_jax.aot.hlo import memory_stats
from noah_jax.benchmark.evaluation import tell_if_busy
from noah_jax.console import working
from noah_jax.models.base import Model
from noah_jax.models.create import create_model
from noah_jax.models.flops import multiply_adds
from noah_jax.pytorch.reference import example_weights

HEADS = ("noah", "linear")
_SECONDS = 0.3  # duration of one measurement, roughly


class Cost(NamedTuple):
    """Cost of a batch.

    Attributes:
      seconds: Median time of a call, in each round.
      arguments_bytes: Bytes of the weights and the images.
      temporary_bytes: Bytes of the arrays between them and the logits.
    """

    seconds: list[float]
    arguments_bytes: int
    temporary_bytes: int


def benchmark_model(
    models: dict[str, Model], *, batch: int, rounds: int, seconds: float = _SECONDS
) -> dict[str, Cost]:
    """Returns the cost of one batch, by head.

    Args:
      models: The models, by head.
      batch: Images a call.
      rounds: Number of measurements of each model; they take turns.
      seconds: Duration of one measurement, roughly.
    """
    calls: dict[str, Callable[[], object]] = {}
    memory: dict[str, tuple[int, int]] = {}
    for head, model in models.items():
        calls[head], memory[head] = _compile(model, batch)
        calls[head]()  # warms up
    times: dict[str, list[float]] = {head: [] for head in models}
    for _ in range(rounds):
        for head, call in calls.items():
            times[head].append(_median_time(call, seconds))
    return {head: Cost(times[head], *memory[head]) for head in models}


def _compile(model: Model, batch: int) -> tuple[Callable[[], object], tuple[int, int]]:
    """Returns a call of the compiled forward pass, and its arguments' and temporaries' bytes."""
    weights = jax.device_put(example_weights(model))
    random = np.random.RandomState(0)
    images = random.standard_normal((batch, *model.image_size, 3)).astype(np.float32)
    arguments = (*weights, jax.device_put(images))
    compiled = model.predict_step.lower(*arguments).compile()
    stats = memory_stats(compiled)
    sizes = stats.argument_size_in_bytes, stats.temp_size_in_bytes
    return lambda: jax.block_until_ready(compiled(*arguments)), sizes


def _median_time(call: Callable[[], object], seconds: float) -> float:
    times: list[float] = []
    start = time.perf_counter()
    while not times or time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def measure_and_print(args: argparse.Namespace) -> None:
    """Measures the model that the options name and prints a row for each batch and head."""
    arguments = {"dtype": args.dtype, "image_size": args.image_size}
    models = {head: create_model(args.model, head=head, **arguments) for head in HEADS}
    tell_if_busy()
    height, width = models["noah"].image_size
    print(
        f"{args.model.removeprefix('noah_')} in evaluation on {jax.devices()[0].device_kind},"
        f" {jnp.dtype(args.dtype).name}, images of {height} x {width} pixels, medians of"
        f" {args.rounds} rounds"
    )
    parameters = [models[head].num_params for head in HEADS]
    operations = [multiply_adds(models[head]) for head in HEADS]
    print(_LINE.format("", "NOAH", "linear", "ratio"))
    print(_line("parameters/M", [n / 1e6 for n in parameters], ".3f"))
    print(_line("FLOPs/G", [n / 1e9 for n in operations], ".3f"))
    for batch in args.batch:
        with working(f"compiling and timing batches of {batch}"):
            costs = benchmark_model(models, batch=batch, rounds=args.rounds)
        noah, linear = (costs[head] for head in HEADS)
        medians = [statistics.median(cost.seconds) for cost in (noah, linear)]
        # The ratio is the median over the rounds, whose two turns met the same noise.
        pairs = zip(noah.seconds, linear.seconds, strict=True)
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"batch {batch}")
        print(_line("  latency/ms", [1e3 * t for t in medians], ".2f", ratio))
        print(_line("  images/s", [batch / t for t in medians], ".1f", 1 / ratio))
        print(_line("  arguments/MB", [c.arguments_bytes / 1e6 for c in (noah, linear)], ".1f"))
        print(_line("  temporary/MB", [c.temporary_bytes / 1e6 for c in (noah, linear)], ".1f"))


_LINE = "{:22} {:>10} {:>10} {:>7}"


def _line(what: str, values: list[float], form: str, ratio: float | None = None) -> str:
    noah, linear = values
    if ratio is None:
        ratio = noah / linear if linear else float("nan")
    return _LINE.format(what, format(noah, form), format(linear, form), f"{ratio:.3f}")
