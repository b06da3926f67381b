"""Measures what a training run costs the host besides the compiled step.

It runs the train step of a configuration alone, on one batch, and fed by the real data. Two figures
are held against a limit of 2 ms a step: how long the device waits for the host between steps, and
the processor time that the loop spends outside the compiled step, while the device computes. Both
loops take turns, so that the machine's noise meets both.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax

from noah_jax.cli import load_config
from noah_jax.compilation import enable_compilation_cache
from noah_jax.console import working
from noah_jax.train.setup import TrainSetup, build

HOST_LIMIT_MS = 2.0
_ROUNDS = 5


def benchmark_host(setup: TrainSetup, steps: int) -> dict[str, float]:
    """Returns milliseconds per step, as medians over the rounds.

    Args:
      setup: The training run to measure.
      steps: Number of steps of each loop in each of the five rounds.

    Returns:
      `step`: the compiled step alone, on one batch; `loop`: the step fed by the real data; `host`:
      the time from the end of a step to the call of the next; `host_cpu`: processor time of the
      loop outside the step; `call`: the time until the call of the step returns.
    """
    train_step, _ = setup.steps.compile()
    state = setup.states.create()
    source = setup.inputs.train_source
    for index in range(len(source) if source.cached else 0):
        source[index]  # from the second epoch on every image is cached

    def run(batches: Iterator) -> dict[str, float]:
        nonlocal state
        host = host_cpu = call = 0.0
        batch = next(batches)
        state, metrics = train_step(state, batch)
        jax.block_until_ready(metrics)
        start = ready = time.perf_counter()
        for _ in range(steps):
            begin = time.perf_counter()
            host += begin - ready
            state, metrics = train_step(state, batch)
            call += time.perf_counter() - begin
            begin_cpu = time.thread_time()
            batch = next(batches)  # the training loop, too, does this while the device computes
            host_cpu += time.thread_time() - begin_cpu
            jax.block_until_ready(metrics)
            ready = time.perf_counter()
        parts = {"total": ready - start, "host": host, "host_cpu": host_cpu, "call": call}
        return {key: 1000 * seconds / steps for key, seconds in parts.items()}

    def repeat(batch: Any) -> Iterator[Any]:
        while True:
            yield batch

    stream = setup.inputs.train_batches(0)
    fixed = repeat(next(stream))
    alone, fed = [], []
    for _ in range(_ROUNDS):
        alone.append(run(fixed))
        fed.append(run(stream))
    return {
        "step": statistics.median(r["total"] for r in alone),
        "loop": statistics.median(r["total"] for r in fed),
        "host": statistics.median(r["host"] for r in fed),
        "host_cpu": statistics.median(r["host_cpu"] for r in fed),
        "call": statistics.median(r["call"] for r in fed),
    }


def measure_and_print(args: argparse.Namespace) -> None:
    """Measures the configuration that the options name and prints a line for each figure."""
    config = load_config(args)
    steps = args.steps
    needed = _ROUNDS * (steps + 1) + 1
    setup = build(config)
    if setup.plan.total_steps < needed:
        config.epochs = (needed + 1) / setup.plan.steps_per_epoch
        config.optim.warmup_epochs = 0.0
        setup = build(config)
    enable_compilation_cache(config.compilation_cache)
    with working(f"compiling and timing the steps of {setup.model.name}"):
        ms = benchmark_host(setup, steps)
    batch = setup.plan.batch_size
    print(f"{setup.model.name}, {batch} images a step, {_ROUNDS} x {steps} steps")
    print(f"compiled step alone     {ms['step']:9.2f} ms")
    print(f"loop with real data     {ms['loop']:9.2f} ms  ({ms['loop'] / ms['step']:.3f} of it)")
    print(f"call until it returns   {ms['call']:9.2f} ms  (inside the compiled step)")
    verdict = "within" if max(ms["host"], ms["host_cpu"]) <= HOST_LIMIT_MS else "OVER"
    print(f"device waits for host   {ms['host']:9.2f} ms")
    print(
        f"host outside the step   {ms['host_cpu']:9.2f} ms  of processor time"
        f" (both {verdict} the limit of {HOST_LIMIT_MS:g} ms)"
    )
