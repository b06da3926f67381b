"""What a model with the NOAH head costs in evaluation, beside the same backbone's linear head.

    python -m noah_jax.benchmark --what model --model noah_resnet50 [--dtype bfloat16]
        [--batch 1,8,32] [--image-size 224] [--rounds 7]

Both are timed in one run on this process's device, and take turns, so that the machine's noise
meets both. Latency is the median time of a call that waits for its result, with the images on the
device already; throughput the images of a batch over it. Memory is what the compiler reserves:
weights, images and logits, and temporary arrays. FLOPs are the multiply-adds of one image.
"""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from noah_jax.benchmark.evaluation import tell_if_busy
from noah_jax.cli import Parser, positive
from noah_jax.models.base import Model
from noah_jax.models.create import create_model
from noah_jax.models.flops import multiply_adds
from noah_jax.pytorch.reference import example_weights

HEADS = ("noah", "linear")
_SECONDS = 0.3  # of one measurement, about


class Cost(NamedTuple):
    """What a batch costs a model.

    Attributes:
      seconds: median time of a call, in each round.
      arguments_bytes: of weights and images.
      temporary_bytes: of what is between them and the logits.
    """

    seconds: list[float]
    arguments_bytes: int
    temporary_bytes: int


def benchmark_model(
    models: dict[str, Model], *, batch: int, rounds: int, seconds: float = _SECONDS
) -> dict[str, Cost]:
    """The cost of one batch, by head.

    Args:
      models: by head.
      batch: images a call.
      rounds: measurements of each, in turns.
      seconds: about how long one measurement takes.
    """
    calls, memory = {}, {}
    for head, model in models.items():
        calls[head], memory[head] = _compile(model, batch)
        calls[head]()  # warms up
    times: dict[str, list[float]] = {head: [] for head in models}
    for _ in range(rounds):
        for head, call in calls.items():
            times[head].append(_median_time(call, seconds))
    return {head: Cost(times[head], *memory[head]) for head in models}


def _compile(model: Model, batch: int) -> tuple[Callable[[], object], tuple[int, int]]:
    weights = jax.device_put(example_weights(model))
    random = np.random.RandomState(0)
    images = random.standard_normal((batch, *model.image_size, 3)).astype(np.float32)
    arguments = (*weights, jax.device_put(images))
    apply = jax.jit(
        lambda *arguments: model.apply(*arguments, train=False)[0],
        compiler_options=model.evaluation_options(),
    )
    compiled = apply.lower(*arguments).compile()
    found = compiled.memory_analysis()
    sizes = found.argument_size_in_bytes, found.temp_size_in_bytes
    return lambda: jax.block_until_ready(compiled(*arguments)), sizes


def _median_time(call: Callable[[], object], seconds: float) -> float:
    times: list[float] = []
    start = time.perf_counter()
    while not times or time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main(argv: list[str]) -> None:
    """Measures what the command line asks for and prints a row for each batch and head."""
    parser = Parser("--what model", add_help=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", default="1,8,32", type=_batches)
    parser.add_argument("--image-size", type=positive)
    parser.add_argument("--rounds", type=positive, default=7)
    given = parser.parse_args(argv[1:])
    arguments = {"dtype": given.dtype, "image_size": given.image_size}
    models = {head: create_model(given.model, head=head, **arguments) for head in HEADS}
    tell_if_busy()
    height, width = models["noah"].image_size
    print(
        f"{given.model.removeprefix('noah_')} in evaluation on {jax.devices()[0].device_kind},"
        f" {jnp.dtype(given.dtype).name}, images of {height} x {width} pixels, medians of"
        f" {given.rounds} rounds"
    )
    parameters = [models[head].num_params for head in HEADS]
    operations = [multiply_adds(models[head]) for head in HEADS]
    print(_LINE.format("", "NOAH", "linear", "ratio"))
    print(_line("parameters/M", [n / 1e6 for n in parameters], ".3f"))
    print(_line("FLOPs/G", [n / 1e9 for n in operations], ".3f"))
    for batch in given.batch:
        costs = benchmark_model(models, batch=batch, rounds=given.rounds)
        noah, linear = (costs[head] for head in HEADS)
        medians = [statistics.median(cost.seconds) for cost in (noah, linear)]
        # The ratio is the median of the rounds': its two turns met the same noise.
        pairs = zip(noah.seconds, linear.seconds, strict=True)
        ratio = statistics.median(ours / theirs for ours, theirs in pairs)
        print(f"batch {batch}")
        print(_line("  latency/ms", [1e3 * t for t in medians], ".2f", ratio))
        print(_line("  images/s", [batch / t for t in medians], ".1f", 1 / ratio))
        print(_line("  arguments/MB", [c.arguments_bytes / 1e6 for c in (noah, linear)], ".1f"))
        print(_line("  temporary/MB", [c.temporary_bytes / 1e6 for c in (noah, linear)], ".1f"))


_LINE = "{:22} {:>10} {:>10} {:>7}"


def _line(what: str, values: list[float], form: str, ratio: float | None = None) -> str:
    ours, theirs = values
    if ratio is None:
        ratio = ours / theirs if theirs else float("nan")
    return _LINE.format(what, format(ours, form), format(theirs, form), f"{ratio:.3f}")


def _batches(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]
