"""The training loop: trains, evaluates and saves what a configuration says."""

import collections
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from clu import parameter_overview
from etils import epath
from flax.traverse_util import flatten_dict
from jax.experimental.multihost_utils import reached_preemption_sync_point
from ml_collections import ConfigDict

from noah_jax import console, distributed
from noah_jax.compilation import QUICK_COMPILE, enable_compilation_cache
from noah_jax.config import HOST_KEYS
from noah_jax.console import say
from noah_jax.runs.checkpoints import Checkpoints, saved_steps
from noah_jax.runs.run_dir import (
    CHECKPOINTS,
    check_config,
    prepare_folder,
    read_results,
    write_results,
)
from noah_jax.tasks.task import Task, describe
from noah_jax.train import nonfinite as finite
from noah_jax.train.metric_writer import MetricWriter
from noah_jax.train.profiling import StepProfile
from noah_jax.train.progress import Progress
from noah_jax.train.setup import Experiment, build, every

_STEPS_IN_FLIGHT = 2  # enough to keep the device busy without batches piling up on it


class Stopped(Exception):
    """The run was asked to stop; its state is saved."""


def train(
    config: ConfigDict,
    workdir: str,
    *,
    alive: Callable[[int], None] = lambda step: None,
    profile: bool = False,
) -> dict[str, Any]:
    """Trains, evaluates and saves what the configuration says; returns the results.

    Args:
      config: see `noah_jax.config`.
      workdir: the run's folder, the same for all processes.
      alive: called with the step after every step and every batch of an evaluation.
      profile: write a profile of some steps into the folder.

    Raises:
      ValueError: before anything is written, if the configuration or the folder does not fit,
        or the processes of the run differ.
      NonFiniteError: before anything of it is saved, if the loss or the weights are not finite.
      Stopped: after SIGTERM or SIGINT, once the state is saved.
    """
    started = time.time()
    directory = epath.Path(workdir)

    # ---- What to train, on what. Nothing is written before all of it is known to fit.
    as_dict = json.loads(config.to_json_best_effort())
    check_config(directory, as_dict)
    saved = saved_steps(directory / CHECKPOINTS)
    distributed.check_equal("start", _facts(as_dict, saved))
    if (results := read_results(directory)) is not None:
        say(f"{workdir} is finished: {_result_line(results)}. Choose another --workdir to train.")
        return results
    experiment = build(config)
    model, total_steps = experiment.model, experiment.total_steps
    distributed.check_equal("data", experiment.data_facts())
    initial = None if saved else experiment.load_initial()

    # ---- Compile both steps, once each.
    enable_compilation_cache(config.compilation_cache, shared=str(directory / "compilation"))
    begin = time.perf_counter()
    train_step, eval_step = experiment.compile_steps()
    compile_seconds = time.perf_counter() - begin

    # ---- State: resume, or start from other weights, or afresh.
    prepare_folder(
        directory,
        as_dict,
        model_name=model.name,
        model_arguments=model.arguments,
        class_names=experiment.class_names,
    )
    checkpoints = Checkpoints(directory / CHECKPOINTS, keep=config.keep_checkpoints)
    state = checkpoints.restore(experiment.abstract_state())
    if state is None:
        state = experiment.init_state(initial)
        say(parameter_overview.get_parameter_overview(state["params"], include_stats=False))
        for line in initial.lines if initial else ():
            say(line)
    del initial  # on the devices now
    start_step = int(state["step"])
    say(
        f"{model.name}: {model.num_params:,} parameters; {experiment.data_name},"
        f" {len(experiment.train_source):,} training and {len(experiment.eval_source):,}"
        f" evaluation images; {total_steps} steps of {experiment.config.batch_size} on"
        f" {experiment.mesh.size} {jax.devices()[0].device_kind} device(s), compiled in"
        f" {compile_seconds:.1f} s"
    )
    for line in _what_is_special(config, experiment):
        say(line)
    if config.shard_state:
        own, whole = distributed.device_bytes(state), sum(x.nbytes for x in jax.tree.leaves(state))
        say(f"a device holds {own / 2**20:,.1f} MiB of the state's {whole / 2**20:,.1f} MiB")
    for line in experiment.groups.describe(state["params"]):
        say(line)
    if start_step:
        say(f"going on after step {start_step} of {total_steps}")
    writer = MetricWriter(directory, start_step=start_step)

    def evaluate(step: int, *, record: bool = True) -> dict[str, dict[str, float]]:
        weights = {"eval": (state["params"], state["stats"])}
        if "ema" in state:
            weights["eval_ema"] = (state["ema"]["params"], state["ema"]["stats"])
        metrics = {split: experiment.empty_eval_metrics() for split in weights}
        for batch in experiment.eval_batches():
            for split, (params, stats) in weights.items():
                metrics[split] = eval_step(params, stats, batch, metrics[split])
            alive(step)
        return {
            split: _evaluated(step, split, experiment.task, found, writer if record else None)
            for split, found in metrics.items()
        }

    # ---- The loop: the host feeds the device and reads metrics one log interval late.
    eval_every = every(config.eval_every, experiment)
    checkpoint_every = every(config.checkpoint_every, experiment)
    progress = Progress(
        experiment,
        directory,
        writer,
        start_step=start_step,
        started=started,
        compile_seconds=compile_seconds,
    )
    profiled = StepProfile(
        directory, start_step=start_step, total_steps=total_steps, wanted=profile
    )
    finite_leaves = jax.jit(finite.finite_leaves, compiler_options=QUICK_COMPILE)
    in_flight: collections.deque = collections.deque()
    batches = experiment.train_batches(start_step)
    evaluated: dict[str, dict[str, float]] = {}
    with _StopRequest() as stop, profiled:
        for step in range(start_step + 1, total_steps + 1):
            with progress.host_time(), progress.input_wait():
                batch = next(batches)
            with profiled.step(step):
                state, metrics = train_step(state, batch)
            profiled.after(step, metrics)
            with progress.host_time():
                progress.add(step, metrics)
                if step % config.log_every == 0 or step == total_steps:
                    progress.log(step, metrics)
                in_flight.append(metrics)
            if len(in_flight) > _STEPS_IN_FLIGHT:
                jax.block_until_ready(in_flight.popleft())
            alive(step)

            last = step == total_steps
            stopping = stop.due(step) and not last
            evaluating = last or step % eval_every == 0
            saving = last or stopping or step % checkpoint_every == 0
            if evaluating or saving:
                progress.pause()
                progress.check(step, finite_leaves(state))
                if evaluating:
                    evaluated = evaluate(step)
                if saving:
                    writer.flush()
                    with progress.saving(step):
                        checkpoints.save(step, state)
                progress.go_on()
            if stopping:
                checkpoints.close()
                writer.close()
                raise Stopped(
                    f"stopped after step {step} of {total_steps}, which is saved;"
                    " the same command goes on from there"
                )
    if not evaluated:  # resumed after the last step: evaluated and recorded, no results yet
        evaluated = evaluate(total_steps, record=False)

    # ---- The results, once everything else is safe.
    progress.pause()
    checkpoints.close()
    writer.close()
    averages = evaluated.get("eval_ema", {})
    results = {
        "model": model.name,
        **evaluated["eval"],
        **{f"ema_{key}": averages[key] for key in averages if key != "examples"},
        "step": total_steps,
        "num_params": model.num_params,
    }
    write_results(directory, results)
    if count := len(experiment.corrupt_images):
        console.warn(
            f"{count} corrupt image(s), named above: replaced by the next one in training,"
            " left out of the evaluation"
        )
    say(
        f"finished in {console.duration(time.time() - started)}, goodput"
        f" {100 * progress.goodput():.0f} %: {_result_line(results)}"
    )
    return results


def _evaluated(
    step: int, split: str, task: Task, metrics: Any, writer: MetricWriter | None
) -> dict[str, float]:
    """What an evaluation found, told and, with a writer, recorded."""
    values = task.summarise(metrics)
    if writer is not None:
        writer.write(step, split, values)
    say(
        f"step {step}: {'EMA ' if split == 'eval_ema' else ''}{describe(values)}, loss"
        f" {values['loss']:.4f} on {values['examples']:,} images"
    )
    return values


def _what_is_special(config: ConfigDict, experiment: Experiment) -> Iterator[str]:
    """Lines on how the batch is not simply the configuration's, shared by the devices."""
    ours = experiment.config
    if config.scale_batch != 1:
        yield (
            f"scale_batch={config.scale_batch:g}: batch {config.batch_size} -> {ours.batch_size},"
            f" learning rate {config.optim.learning_rate:g} -> {ours.optim.learning_rate:g} (linear"
            " rule); epochs and warm-up stay"
        )
    if ours.optim.accumulate > 1:
        part = ours.batch_size // ours.optim.accumulate
        yield f"a step computes its {ours.batch_size} images in parts of {part}"
    if line := experiment.describe_groups():
        yield line


def _facts(config: dict[str, Any], saved: list[int]) -> dict[str, Any]:
    """What all processes must have alike before they open the data."""
    flat = flatten_dict(config, sep=".")
    return {
        **distributed.machine_facts(),
        **{f"config.{key}": value for key, value in flat.items() if key not in HOST_KEYS},
        "the list of checkpoints": saved,
    }


class _StopRequest:
    """SIGTERM and SIGINT, honoured by all processes after the same step.

    A process alone honours them after the step it is in. Of several JAX's preemption service
    has them agree on a step that none has passed; it needs no collective.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self._requested = False
        self._alone = distributed.client() is None

    def due(self, step: int) -> bool:
        """Whether to stop after this step; to be asked after every one."""
        return self._requested if self._alone else reached_preemption_sync_point(step)

    def __enter__(self):
        # Only the main thread may. SIGTERM of several processes is the service's own.
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            numbers = self._SIGNALS if self._alone else (signal.SIGINT,)
            self._before = {s: signal.signal(s, self._request) for s in numbers}
        return self

    def __exit__(self, *unused):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number, frame):
        self._requested = True
        if not self._alone:
            signal.raise_signal(signal.SIGTERM)


def _result_line(results: dict[str, Any]) -> str:
    averages = {k.removeprefix("ema_"): v for k, v in results.items() if k.startswith("ema_")}
    average = f" (EMA: {describe(averages)})" if averages else ""
    return (
        f"{results['model']} has {describe(results)}{average} on {results['examples']:,} images"
        f" after step {results['step']}"
    )
