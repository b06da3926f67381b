"""The training program.

    python -m noah_jax.train --config configs/quickstart.py --workdir DIR [--config.KEY=VALUE]

Started again on the same DIR it goes on from the last checkpoint, exactly; a finished DIR
says so. DIR and class folders may be `gs://` paths.
"""

import collections
import functools
import json
import os
import signal
import sys
import threading
import time
from typing import Any

import jax
from absl import flags, logging
from clu import parameter_overview
from etils import epath
from ml_collections import ConfigDict, config_flags

from noah_jax import distributed, optim, report
from noah_jax import workdir as workdirs
from noah_jax.checkpoint import CheckpointError, Checkpoints
from noah_jax.data.batches import eval_batches, train_batches
from noah_jax.data.sources import open_sources
from noah_jax.data.transforms import make_eval_transform, make_train_transform
from noah_jax.metrics import EvalMetrics, as_floats
from noah_jax.models import create_model
from noah_jax.report import say
from noah_jax.step import init_state, make_eval_step, make_train_step

RESTARTABLE = 75  # EX_TEMPFAIL: the same command goes on from the saved step
_STEPS_IN_FLIGHT = 2  # enough to keep the device busy without batches piling up on it


class Stopped(Exception):
    """The run was asked to stop; its state is saved."""


def train(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Trains, evaluates and saves what the configuration says; returns the results.

    Args:
      config: see `noah_jax.config`.
      workdir: the run's folder.

    Raises:
      ValueError: before anything is written, if the configuration or the folder does not fit.
      Stopped: after SIGTERM or SIGINT, once the state is saved.
    """
    started = time.time()
    directory = epath.Path(workdir)

    # ---- What to train, on what. Nothing is written before all of it is known to fit.
    as_dict = json.loads(config.to_json_best_effort())
    workdirs.check(directory, as_dict)
    if (results := workdirs.results(directory)) is not None:
        say(f"{workdir} is finished: {_result_line(results)}. Choose another --workdir to train.")
        return results
    if config.log_every < 1:
        raise ValueError(f"log_every must be at least 1 step, got {config.log_every}")
    mesh = distributed.make_mesh()
    eval_batch_size = config.eval_batch_size or config.batch_size
    distributed.check_batch_size("batch_size", config.batch_size, mesh)
    distributed.check_batch_size("eval_batch_size", eval_batch_size, mesh)
    train_source, eval_source = open_sources(
        config.data.name,
        data_dir=config.data.dir,
        train_split=config.data.train_split,
        eval_split=config.data.eval_split,
    )
    arguments = {k: v for k, v in config.model.to_dict().items() if v is not None}
    model = create_model(
        **{"num_classes": len(train_source.class_names), "image_size": None, **arguments}
    )
    train_transform = make_train_transform(
        config.data.crop,
        model.image_size,
        pad=config.data.pad,
        area=config.data.area,
        ratio=config.data.ratio,
        interpolation=config.data.interpolation,
        flip=config.data.flip,
    )
    eval_transform = make_eval_transform(
        model.image_size, resize=config.data.eval_resize, interpolation=config.data.interpolation
    )
    steps_per_epoch = len(train_source) / config.batch_size
    total_steps = round(config.epochs * steps_per_epoch)
    if total_steps < 1:
        raise ValueError(
            f"epochs={config.epochs} of {len(train_source)} images in batches of"
            f" {config.batch_size} are less than one step"
        )
    schedule = optim.make_schedule(
        config.optim, total_steps=total_steps, steps_per_epoch=steps_per_epoch
    )
    optimizer = optim.make_optimizer(config.optim, schedule)
    pixels = {
        "mean": tuple(config.data.mean or model.mean),
        "std": tuple(config.data.std or model.std),
    }
    hosts = {"process_index": jax.process_index(), "process_count": jax.process_count()}

    # ---- Compile both steps, once each.
    enable_compilation_cache(config.compilation_cache)
    everywhere = distributed.replicated(mesh)
    make_state = functools.partial(init_state, model, optimizer, config.seed)
    abstract = distributed.abstract_like(jax.eval_shape(make_state), everywhere)
    train_step, eval_step = compile_steps(
        make_train_step(
            model,
            optimizer,
            seed=config.seed,
            label_smoothing=config.optim.label_smoothing,
            log_every=config.log_every,
            **pixels,
        ),
        make_eval_step(model, **pixels),
        abstract,
        mesh,
        image_size=model.image_size,
        batch_size=config.batch_size,
        eval_batch_size=eval_batch_size,
    )

    # ---- State: resume, or start afresh.
    workdirs.prepare(directory, as_dict, model)
    checkpoints = Checkpoints(directory / workdirs.CHECKPOINTS, keep=config.keep_checkpoints)
    state = checkpoints.restore(abstract)
    if state is None:
        state = jax.jit(make_state, out_shardings=everywhere)()
        say(parameter_overview.get_parameter_overview(state["params"], include_stats=False))
    start_step = int(state["step"])
    say(
        f"{model.name}: {model.num_params:,} parameters; {train_source.name},"
        f" {len(train_source):,} training and {len(eval_source):,} evaluation images;"
        f" {total_steps} steps of {config.batch_size} on {mesh.size}"
        f" {jax.devices()[0].device_kind} device(s)"
    )
    if start_step:
        say(f"going on after step {start_step} of {total_steps}")
    writer = report.MetricWriter(directory, start_step=start_step)

    def evaluate(step: int) -> dict[str, float]:
        metrics = jax.jit(EvalMetrics.empty, out_shardings=everywhere)()
        batches = eval_batches(
            eval_source,
            eval_transform,
            batch_size=eval_batch_size,
            num_threads=config.data.num_threads,
            **hosts,
        )
        for batch in batches:
            put = distributed.put_batch(batch, mesh)
            metrics = eval_step(state["params"], state["stats"], put, metrics)
        examples = int(jax.device_get(metrics.top1.count))
        values = as_floats(metrics)
        values = {
            "loss": values["loss"],
            "top1": 100 * values["top1"],
            "top5": 100 * values["top5"],
            "examples": examples,
        }
        writer.write(step, "eval", values)
        say(
            f"step {step}: top-1 {values['top1']:.2f} %, top-5 {values['top5']:.2f} %,"
            f" loss {values['loss']:.4f} on {examples:,} images"
        )
        return values

    # ---- The loop: the host feeds the device and reads metrics one log interval late.
    eval_every = config.eval_every or max(round(steps_per_epoch), 1)
    checkpoint_every = config.checkpoint_every or max(round(steps_per_epoch), 1)
    progress = _Progress(config, writer, schedule, start_step, total_steps, steps_per_epoch)
    in_flight: collections.deque = collections.deque()
    batches = train_batches(
        train_source,
        train_transform,
        seed=config.seed,
        batch_size=config.batch_size,
        start_step=start_step,
        total_steps=total_steps,
        num_threads=config.data.num_threads,
        **hosts,
    )
    evaluated: dict[str, float] = {}
    with _StopRequest() as stop:
        for step in range(start_step + 1, total_steps + 1):
            begin = time.perf_counter()
            batch = distributed.put_batch(next(batches), mesh)
            state, metrics = train_step(state, batch)
            if step % config.log_every == 0 or step == total_steps:
                progress.log(step, metrics)
            progress.host_seconds += time.perf_counter() - begin
            in_flight.append(metrics)
            if len(in_flight) > _STEPS_IN_FLIGHT:
                jax.block_until_ready(in_flight.popleft())

            last = step == total_steps
            if last or step % eval_every == 0:
                progress.pause()
                evaluated = evaluate(step)
                progress.go_on()
            if last or step % checkpoint_every == 0 or stop.requested:
                progress.pause()
                writer.flush()
                checkpoints.save(step, state)
                progress.go_on()
            if stop.requested and not last:
                checkpoints.close()
                writer.close()
                raise Stopped(
                    f"stopped after step {step} of {total_steps}, which is saved;"
                    " the same command goes on from there"
                )
    if not evaluated:  # resumed after the last step, before the results were written
        evaluated = evaluate(total_steps)

    # ---- The results, once everything else is safe.
    progress.pause()
    checkpoints.close()
    writer.close()
    results = {
        "model": model.name,
        "top1": evaluated["top1"],
        "top5": evaluated["top5"],
        "loss": evaluated["loss"],
        "examples": evaluated["examples"],
        "step": total_steps,
        "num_params": model.num_params,
    }
    if jax.process_index() == 0:
        text = json.dumps(results, indent=2) + "\n"
        report.write_text(directory / workdirs.RESULTS_FILE, text)
    say(f"finished in {report.duration(time.time() - started)}: {_result_line(results)}")
    return results


def compile_steps(
    train_step, eval_step, abstract, mesh, *, image_size, batch_size, eval_batch_size
):
    """Both steps compiled ahead for their only shapes; a call with others is an error.

    Args:
      train_step: see `make_train_step`; its state is donated.
      eval_step: see `make_eval_step`; its metrics are donated.
      abstract: the state as `jax.ShapeDtypeStruct`s with shardings.
      mesh: the devices.
      image_size: `(height, width)` in pixels.
      batch_size: images of a training step over all devices.
      eval_batch_size: images of an evaluation step.
    """
    everywhere, split = distributed.replicated(mesh), distributed.batch_sharding(mesh)

    def abstract_batch(size: int, mask: bool) -> dict[str, jax.ShapeDtypeStruct]:
        shapes = {"image": ((size, *image_size, 3), "uint8"), "label": ((size,), "int32")}
        if mask:
            shapes["mask"] = ((size,), "bool")
        return {k: jax.ShapeDtypeStruct(s, d, sharding=split) for k, (s, d) in shapes.items()}

    compiled_train = (
        jax.jit(train_step, donate_argnums=0, out_shardings=everywhere)
        .lower(abstract, abstract_batch(batch_size, mask=False))
        .compile()
    )
    metrics = distributed.abstract_like(jax.eval_shape(EvalMetrics.empty), everywhere)
    compiled_eval = (
        jax.jit(eval_step, donate_argnums=3, out_shardings=everywhere)
        .lower(
            abstract["params"],
            abstract["stats"],
            abstract_batch(eval_batch_size, mask=True),
            metrics,
        )
        .compile()
    )
    return compiled_train, compiled_eval


def enable_compilation_cache(folder: str | None) -> None:
    """Keeps compiled programs between runs, unless JAX's own setting already says where."""
    if folder and jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))


class _Progress:
    """Reads the metrics one log interval late, and tells them."""

    def __init__(self, config, writer, schedule, start_step, total_steps, steps_per_epoch):
        self._config = config
        self._writer = writer
        self._schedule = schedule
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._pending: tuple | None = None
        self._last_step = start_step
        self._seconds = 0.0  # of training since the last log line, pauses left out
        self._since = time.perf_counter()
        self.host_seconds = 0.0

    def log(self, step: int, metrics: Any) -> None:
        """Tells what was logged before, keeps `metrics` for the next time."""
        now = time.perf_counter()
        seconds = self._seconds + now - self._since
        self._seconds, self._since = 0.0, now
        steps = step - self._last_step
        host_ms = 1000 * self.host_seconds / steps
        self._last_step, self.host_seconds = step, 0.0
        self._flush()
        self._pending = (step, metrics, steps / seconds, host_ms)

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
        step, metrics, steps_per_second, host_ms = self._pending
        self._pending = None
        values = as_floats(metrics)
        accuracy = 100 * values["accuracy"]
        epoch = step / self._steps_per_epoch
        speed = steps_per_second * self._config.batch_size
        left = (self._total_steps - step) / steps_per_second
        self._writer.write(
            step,
            "train",
            {
                "epoch": epoch,
                "loss": values["loss"],
                "accuracy": accuracy,
                "learning_rate": float(self._schedule(step - 1)),
                "images_per_second": speed,
                "host_ms": host_ms,
            },
        )
        say(
            f"step {step}/{self._total_steps}  epoch {epoch:.1f}  loss {values['loss']:.4f}"
            f"  accuracy {accuracy:.2f} %  {speed:,.0f} images/s  {report.duration(left)} left"
        )


class _StopRequest:
    """Turns SIGTERM and SIGINT into a request that the loop honours after its step."""

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.requested = False

    def __enter__(self):
        # Several hosts would have to agree on the step; and only the main thread may.
        self._own = (
            jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        )
        if self._own:
            self._before = {s: signal.signal(s, self._request) for s in self._SIGNALS}
        return self

    def __exit__(self, *unused):
        if self._own:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _request(self, number, frame):
        self.requested = True


def _result_line(results: dict[str, Any]) -> str:
    return (
        f"{results['model']} has top-1 {results['top1']:.2f} % and top-5 {results['top5']:.2f} %"
        f" on {results['examples']:,} images after step {results['step']}"
    )


def _closing_words(config: ConfigDict, workdir: str) -> str:
    lines = [
        f"results      {workdir}/{workdirs.RESULTS_FILE}",
        f"metrics      {workdir}/metrics.jsonl, and: tensorboard --logdir {workdir}",
        f"weights      {workdir}/{workdirs.CHECKPOINTS}; in Python:"
        f" noah_jax.load_model({workdir!r})",
    ]
    lines += [f"next         {command}" for command in config.get("next_commands", ())]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Parses the command line and trains; returns the exit code."""
    config_flag = config_flags.DEFINE_config_file("config", None, "The configuration file.")
    workdir_flag = flags.DEFINE_string("workdir", None, "The run's folder, local or gs://.")
    try:
        flags.FLAGS(argv)
        if config_flag.value is None or not workdir_flag.value:
            return _fail("--config FILE and --workdir DIR are needed")
    except AttributeError as error:
        return _fail(f"the configuration has no key {error}")
    except (flags.Error, OSError, ValueError, TypeError, KeyError) as error:
        return _fail(error)
    logging.set_verbosity(logging.ERROR)  # the libraries' own notes; ours are printed
    config, workdir = config_flag.value, workdir_flag.value
    try:
        train(config, workdir)
    except Stopped as stopped:
        say(stopped)
        return RESTARTABLE
    except (ValueError, CheckpointError) as error:
        if jax.process_count() == 1 and "NOAH_TRACEBACK" not in os.environ:
            return _fail(error)
        raise
    say(_closing_words(config, workdir))
    return 0


def _fail(reason: object) -> int:
    print("error:", " ".join(str(reason).split()), file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv))
