"""The training program.

    python -m noah_jax.train --config configs/quickstart.py --workdir DIR [--config.KEY=VALUE]

Started again on the same DIR it goes on from the last checkpoint, exactly; a finished DIR
says so. DIR and class folders may be `gs://` paths. An error is one line; NOAH_TRACEBACK=1 in
the environment shows where it came from.

On many hosts the same command runs on each: a TPU pod, SLURM, Open MPI and Kubernetes are found,
elsewhere --coordinator=HOST:PORT --num_processes=N --process_id=I say who is who. The exit code
is 0 when finished, 75 when the same command would go on, 1 when it would fail again.
"""

from noah_jax.arguments import show_help

if __name__ == "__main__":
    show_help(__doc__)  # before the imports that take seconds

import collections
import contextlib
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import logging
from clu import parameter_overview
from etils import epath
from flax.traverse_util import flatten_dict
from jax.experimental.multihost_utils import reached_preemption_sync_point
from ml_collections import ConfigDict

from noah_jax import distributed, finite, report
from noah_jax import workdir as workdirs
from noah_jax.checkpoint import CheckpointError, Checkpoints, saved_steps
from noah_jax.config import HOST_KEYS, UsageError, parse_command_line
from noah_jax.experiment import QUICK_COMPILE, Experiment, build, enable_compilation_cache, every
from noah_jax.finite import NonFiniteError
from noah_jax.metrics import EvalMetrics, TrainMetrics, as_floats
from noah_jax.report import say
from noah_jax.watchdog import RESTARTABLE, Watchdog

_STEPS_IN_FLIGHT = 2  # enough to keep the device busy without batches piling up on it


_EXPECTED_ERRORS = (UsageError, ValueError, CheckpointError, NonFiniteError)


class Stopped(Exception):
    """The run was asked to stop; its state is saved."""


def train(
    config: ConfigDict, workdir: str, *, alive: Callable[[int], None] = lambda step: None
) -> dict[str, Any]:
    """Trains, evaluates and saves what the configuration says; returns the results.

    Args:
      config: see `noah_jax.config`.
      workdir: the run's folder, the same for all processes.
      alive: called with the step after every step and every batch of an evaluation.

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
    workdirs.check(directory, as_dict)
    saved = saved_steps(directory / workdirs.CHECKPOINTS)
    distributed.check_equal("start", _facts(as_dict, saved))
    if (results := workdirs.results(directory)) is not None:
        say(f"{workdir} is finished: {_result_line(results)}. Choose another --workdir to train.")
        return results
    experiment = build(config)
    model, total_steps = experiment.model, experiment.total_steps
    distributed.check_equal("data", experiment.data_facts())
    initial = None if saved else experiment.load_initial()

    # ---- Compile both steps, once each.
    enable_compilation_cache(config.compilation_cache, shared=str(directory / "compilation"))
    train_step, eval_step = experiment.compile_steps()

    # ---- State: resume, or start from other weights, or afresh.
    workdirs.prepare(directory, as_dict, model, experiment.class_names)
    checkpoints = Checkpoints(directory / workdirs.CHECKPOINTS, keep=config.keep_checkpoints)
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
        f" evaluation images; {total_steps} steps of {config.batch_size} on"
        f" {experiment.mesh.size} {jax.devices()[0].device_kind} device(s)"
    )
    for line in experiment.groups.describe(state["params"]):
        say(line)
    if start_step:
        say(f"going on after step {start_step} of {total_steps}")
    writer = report.MetricWriter(directory, start_step=start_step)

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
            split: _evaluated(step, split, found, writer if record else None)
            for split, found in metrics.items()
        }

    # ---- The loop: the host feeds the device and reads metrics one log interval late.
    eval_every = every(config.eval_every, experiment)
    checkpoint_every = every(config.checkpoint_every, experiment)
    progress = _Progress(experiment, directory, writer, start_step)
    finite_leaves = jax.jit(finite.finite_leaves, compiler_options=QUICK_COMPILE)
    in_flight: collections.deque = collections.deque()
    batches = experiment.train_batches(start_step)
    evaluated: dict[str, dict[str, float]] = {}
    with _StopRequest() as stop:
        for step in range(start_step + 1, total_steps + 1):
            with progress.host_time(), progress.input_wait():
                batch = next(batches)
            state, metrics = train_step(state, batch)
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
    if jax.process_index() == 0:
        text = json.dumps(results, indent=2) + "\n"
        report.write_text(directory / workdirs.RESULTS_FILE, text)
    if damaged := len(experiment.damaged):
        report.warn(
            f"{damaged} damaged image(s), named above: replaced by the next one in training,"
            " left out of the evaluation"
        )
    say(f"finished in {report.duration(time.time() - started)}: {_result_line(results)}")
    return results


def _evaluated(
    step: int, split: str, metrics: EvalMetrics, writer: report.MetricWriter | None
) -> dict[str, float]:
    """What an evaluation found, told and, with a writer, recorded."""
    examples = int(jax.device_get(metrics.top1.count))
    values = as_floats(metrics)
    values = {
        "top1": 100 * values["top1"],
        "top5": 100 * values["top5"],
        "loss": values["loss"],
        "examples": examples,
    }
    if writer is not None:
        writer.write(step, split, values)
    say(
        f"step {step}: {'EMA ' if split == 'eval_ema' else ''}top-1 {values['top1']:.2f} %,"
        f" top-5 {values['top5']:.2f} %, loss {values['loss']:.4f} on {examples:,} images"
    )
    return values


def _facts(config: dict[str, Any], saved: list[int]) -> dict[str, Any]:
    """What all processes must have alike before they open the data."""
    flat = flatten_dict(config, sep=".")
    return {
        **distributed.machine_facts(),
        **{f"config.{key}": value for key, value in flat.items() if key not in HOST_KEYS},
        "the list of checkpoints": saved,
    }


class _Progress:
    """Reads the metrics one log interval late, tells them, and stops at a non-finite loss."""

    def __init__(
        self,
        experiment: Experiment,
        directory: epath.Path,
        writer: report.MetricWriter,
        start_step: int,
    ):
        self._experiment = experiment
        self._directory = directory
        self._writer = writer
        self._losses: list[tuple[int, Any]] = []  # by step, of which none was read
        self._pending: tuple | None = None
        self._last_step = start_step
        self._seconds = 0.0  # of training since the last log line, pauses left out
        self._since = time.perf_counter()
        self._host_seconds = 0.0
        self._wait_seconds = 0.0

    @contextlib.contextmanager
    def host_time(self) -> Iterator[None]:
        """Counts the processor time of what is done inside: the loop outside the step."""
        begin = time.thread_time()
        yield
        self._host_seconds += time.thread_time() - begin

    @contextlib.contextmanager
    def input_wait(self) -> Iterator[None]:
        """Counts the time until a batch is there: next to none unless the input is too slow."""
        begin = time.perf_counter()
        yield
        self._wait_seconds += time.perf_counter() - begin

    def add(self, step: int, metrics: TrainMetrics) -> None:
        """Keeps a step's loss until its log line is told: should that not be finite."""
        self._losses.append((step, metrics.loss.total))

    def check(self, step: int, finite_leaves: dict[str, Any]) -> None:
        """Raises a NonFiniteError unless all losses so far are finite, and the state is."""
        if self._losses:
            self._check_losses()
        bad = [path for path, ok in jax.device_get(finite_leaves).items() if not ok]
        if bad:
            raise self._non_finite(step, f"{len(bad)} arrays, such as {bad[0]}", arrays=bad)

    def log(self, step: int, metrics: Any) -> None:
        """Tells what was logged before, keeps `metrics` for the next time."""
        now = time.perf_counter()
        seconds = self._seconds + now - self._since
        self._seconds, self._since = 0.0, now
        steps = step - self._last_step
        speeds = {
            "images_per_second": steps * self._experiment.config.batch_size / seconds,
            "input_wait": self._wait_seconds / seconds,
            "host_ms": 1000 * self._host_seconds / steps,
        }
        self._last_step, self._host_seconds, self._wait_seconds = step, 0.0, 0.0
        self._flush()
        self._pending = (step, metrics, steps / seconds, speeds)

    def pause(self) -> None:
        """Tells what is pending and stops the clock: what follows is not training."""
        self._flush()
        self._seconds += time.perf_counter() - self._since

    def go_on(self) -> None:
        """Starts the clock again."""
        self._since = time.perf_counter()

    def _flush(self) -> None:
        if self._pending is None:
            return
        step, metrics, steps_per_second, speeds = self._pending
        self._pending = None
        values = as_floats(metrics)
        if not math.isfinite(values["loss"]):
            self._check_losses()
        self._losses = [pair for pair in self._losses if pair[0] > step]
        accuracy = 100 * values["accuracy"]
        epoch = step / self._experiment.steps_per_epoch
        left = (self._experiment.total_steps - step) / steps_per_second
        self._writer.write(
            step,
            "train",
            {
                "epoch": epoch,
                "loss": values["loss"],
                "accuracy": accuracy,
                "learning_rate": values["learning_rate"],
                **speeds,
            },
        )
        say(
            f"step {step}/{self._experiment.total_steps}  epoch {epoch:.1f}"
            f"  loss {values['loss']:.4f}  accuracy {accuracy:.2f} %"
            f"  {speeds['images_per_second']:,.0f} images/s"
            f"  input wait {100 * speeds['input_wait']:.0f} %  {report.duration(left)} left"
        )

    def _check_losses(self) -> None:
        """Raises a NonFiniteError at the first step whose loss is not finite, if there is one."""
        step = finite.first_bad_step(self._losses)
        if step is not None:
            raise self._non_finite(step, "the loss")

    def _non_finite(self, step: int, what: str, **facts: Any) -> NonFiniteError:
        order = self._experiment.order
        rows = range(order.batch_size)
        facts |= {
            "learning_rate": float(self._experiment.schedule(step - 1)),
            "epoch": (step - 1) / self._experiment.steps_per_epoch,
            "image_indices": [order.at(step - 1, row)[1] for row in rows],
        }
        path = finite.dump(self._directory, step, facts)
        return NonFiniteError(
            f"{what} is not finite at step {step}; nothing of it is saved, {path} says which images"
            " it had. The same command would come to it again: lower optim.learning_rate, set"
            " optim.clip_grad_norm, or start from another seed"
        )


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
    average = f" (EMA {results['ema_top1']:.2f} %)" if "ema_top1" in results else ""
    return (
        f"{results['model']} has top-1 {results['top1']:.2f} %{average} and top-5"
        f" {results['top5']:.2f} % on {results['examples']:,} images after step {results['step']}"
    )


def _closing_words(config: ConfigDict, workdir: str) -> str:
    lines = [
        f"results      {workdir}/{workdirs.RESULTS_FILE}",
        f"metrics      {workdir}/metrics.jsonl, and: tensorboard --logdir {workdir}",
        f"weights      {workdir}/{workdirs.CHECKPOINTS}; in Python:"
        f" noah_jax.load_model({workdir!r})",
    ]
    lines += [f"try next     {command}" for command in config.try_next]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Trains what the command line says; returns the exit code."""
    logging.set_verbosity(logging.ERROR)  # the libraries' own notes; ours are printed
    try:
        config, given = parse_command_line(
            argv, workdir=None, coordinator="", num_processes=0, process_id=-1
        )
        distributed.start(given["coordinator"], given["num_processes"], given["process_id"])
        with Watchdog(
            config.watchdog_seconds, orderly=(Stopped,), expected=_EXPECTED_ERRORS
        ) as watchdog:
            train(config, given["workdir"], alive=watchdog.progress)
    except Stopped as stopped:
        say(stopped)
        return RESTARTABLE
    except distributed.JoinError as error:
        report.fail(error)
        return RESTARTABLE
    except _EXPECTED_ERRORS as error:
        if "NOAH_TRACEBACK" in os.environ:
            raise
        return report.fail(error)
    say(_closing_words(config, given["workdir"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
