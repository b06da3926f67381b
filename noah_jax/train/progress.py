"""Logs what the training loop does: losses, norms, speeds, and where the time goes."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax
from etils import epath
from jax.sharding import Mesh

from noah_jax import console
from noah_jax.console import say
from noah_jax.errors import NonFiniteError
from noah_jax.tasks.metrics import as_floats
from noah_jax.train import throughput
from noah_jax.train.device_idle import DeviceIdle
from noah_jax.train.metric_writer import MetricWriter
from noah_jax.train.nonfinite import first_bad_step, write_report
from noah_jax.train.plan import Plan
from noah_jax.train.step import StepMetrics
from noah_jax.train.wait_notice import WaitNotice

_NORMS = ("grad_norm", "param_norm", "update_norm")


class Progress:
    """Fetches the metrics one log interval late, logs them, and raises on a non-finite loss.

    The metrics of a log line are computed long before they are read, so reading them does not
    keep the device waiting. The training loop runs inside of the context, which measures how long
    the devices wait for images.

    Args:
      directory: The run's folder.
      writer: Writes the metrics.
      plan: How many images and steps the run has.
      mesh: The devices.
      schedule: The learning rate by step.
      image_indices: Returns the indices of the images that a step trains on.
      step_flops: FLOPs of a step on all devices; `None` if unknown.
      start_step: The step that this start resumes after.
      started: When this start began, in seconds since 1970.
      compile_seconds: How long compiling the steps took; logged with the first metrics.
      accuracy_words: What the accuracy is, see `noah_jax.tasks.task.Task`.
      wait_notice: Says that the devices wait for images.
    """

    def __init__(
        self,
        directory: epath.Path,
        writer: MetricWriter,
        *,
        plan: Plan,
        mesh: Mesh,
        schedule: optax.Schedule,
        image_indices: Callable[[int], list[int]],
        step_flops: float | None,
        start_step: int,
        started: float,
        compile_seconds: float,
        accuracy_words: str,
        wait_notice: WaitNotice,
    ) -> None:
        self._directory = directory
        self._writer = writer
        self._plan = plan
        self._devices = mesh.size
        self._peak_flops = throughput.peak_flops(mesh.devices.flat[0].device_kind)
        self._schedule = schedule
        self._image_indices = image_indices
        self._step_flops = step_flops
        self._goodput = throughput.Goodput(directory, start_step=start_step, started=started)
        self._once = {"compile_seconds": compile_seconds}
        self._accuracy_words = accuracy_words
        self._wait_notice = wait_notice
        self._idle = DeviceIdle()
        self._losses: list[tuple[int, Any]] = []  # Of the steps that were not logged yet.
        self._pending: tuple[int, StepMetrics, float, dict[str, float], str | None] | None = None
        self._last_step = start_step
        self._last_seconds = 0.0  # Seconds of training until the last log line.
        self._seconds = 0.0  # Seconds of training since this start, without pauses.
        self._since: float | None = time.perf_counter()
        self._host_seconds = 0.0
        self._wait_seconds = 0.0
        self._save_seconds = 0.0

    def __enter__(self) -> "Progress":
        self._idle.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._idle.__exit__(*error)

    @contextlib.contextmanager
    def host_time(self) -> Iterator[None]:
        """Counts the processor time spent inside, which is the loop's outside of the step."""
        begin = time.thread_time()
        yield
        self._host_seconds += time.thread_time() - begin

    @contextlib.contextmanager
    def input_wait(self) -> Iterator[None]:
        """Counts the time for which the devices have nothing to do until a batch is there."""
        begin = time.perf_counter()
        yield
        self._wait_seconds += self._idle.since(begin)

    @contextlib.contextmanager
    def saving(self, step: int) -> Iterator[None]:
        """Counts the time for which the start of saving a checkpoint holds up the loop."""
        begin = time.perf_counter()
        yield
        self._save_seconds += time.perf_counter() - begin
        self._goodput.save(step, self._trained())

    def add(self, step: int, metrics: StepMetrics) -> None:
        """Keeps the loss of each step until it is logged, so that a NaN is traced to its step.

        Must be called as soon as the step is started.
        """
        self._idle.step(metrics.loss.total)
        self._losses.append((step, metrics.loss.total))

    def check(self, step: int, finite_leaves: dict[str, Any]) -> None:
        """Raises a NonFiniteError unless all losses so far are finite, and the state is."""
        if self._losses:
            self._check_losses()
        bad = [path for path, ok in jax.device_get(finite_leaves).items() if not ok]
        if bad:
            raise self._non_finite(step, f"{len(bad)} arrays, such as {bad[0]}", arrays=bad)

    def log(self, step: int, metrics: StepMetrics) -> None:
        """Logs the metrics of the last call and keeps `metrics` for the next one."""
        trained = self._trained()
        seconds = trained - self._last_seconds
        steps = step - self._last_step
        images_per_second = steps * self._plan.batch_size / seconds
        speeds = {
            "images_per_second": images_per_second,
            "images_per_second_per_chip": images_per_second / self._devices,
            "step_ms": 1000 * seconds / steps,
            "input_wait": self._wait_seconds / seconds,
            "host_ms": 1000 * self._host_seconds / steps,
            "save_seconds": self._save_seconds,
            "goodput": self._goodput.fraction(trained),
            **self._once,
        }
        if self._peak_flops is not None and self._step_flops is not None:
            flops_per_second = self._step_flops * steps / seconds
            speeds["mfu"] = flops_per_second / (self._devices * self._peak_flops)
        self._once = {}
        self._last_step, self._last_seconds = step, trained
        self._host_seconds = self._wait_seconds = self._save_seconds = 0.0
        self._flush()
        notice = self._wait_notice.after(speeds["input_wait"], images_per_second)
        self._pending = (step, metrics, steps / seconds, speeds, notice)

    def pause(self) -> None:
        """Logs what is pending and stops the clock, because what follows is not training."""
        self._flush()
        if self._losses:
            jax.block_until_ready(self._losses[-1])  # The steps under way still are training.
        self._seconds, self._since = self._trained(), None

    def go_on(self) -> None:
        """Starts the clock again."""
        self._since = time.perf_counter()

    def goodput(self) -> float:
        """Returns the fraction of time since the run's first start that led to these weights."""
        return self._goodput.fraction(self._trained())

    def _trained(self) -> float:
        """Seconds of training since this start."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self._seconds + running

    def _flush(self) -> None:
        if self._pending is None:
            return
        step, metrics, steps_per_second, speeds, notice = self._pending
        self._pending = None
        values = as_floats(metrics)
        if not math.isfinite(values["loss"]):
            self._check_losses()
        norms = {name: float(getattr(metrics, name)) for name in _NORMS}
        self._losses = [pair for pair in self._losses if pair[0] > step]
        accuracy = 100 * values["accuracy"]
        epoch = step / self._plan.steps_per_epoch
        left = (self._plan.total_steps - step) / steps_per_second
        self._writer.write(
            step,
            "train",
            {
                "epoch": epoch,
                "loss": values["loss"],
                "accuracy": accuracy,
                "learning_rate": values["learning_rate"],
                **norms,
                **speeds,
            },
        )
        say(
            f"step {step}/{self._plan.total_steps}  epoch {epoch:.1f}"
            f"  loss {values['loss']:.4f}  {self._accuracy_words} {accuracy:.2f} %"
            f"  {_describe_norms(norms)}  {_describe_speeds(speeds)}"
            f"  {console.duration(left)} left"
        )
        if notice is not None:
            say(notice)

    def _check_losses(self) -> None:
        """Raises a NonFiniteError at the first step whose loss is not finite, if there is one."""
        step = first_bad_step(self._losses)
        if step is not None:
            raise self._non_finite(step, "the loss")

    def _non_finite(self, step: int, what: str, **details: Any) -> NonFiniteError:
        details |= {
            "learning_rate": float(self._schedule(step - 1)),
            "epoch": (step - 1) / self._plan.steps_per_epoch,
            "image_indices": self._image_indices(step),
        }
        path = write_report(self._directory, step, details)
        return NonFiniteError(
            f"{what} is not finite at step {step}; nothing of it is saved, {path} says which images"
            " it had. The same command would come to it again: lower optim.learning_rate, set"
            " optim.clip_grad_norm, or start from another seed"
        )


def _describe_norms(norms: dict[str, float]) -> str:
    return (
        f"norms: gradient {norms['grad_norm']:.3g}, parameters {norms['param_norm']:.3g},"
        f" update {norms['update_norm']:.3g}"
    )


def _describe_speeds(speeds: dict[str, float]) -> str:
    words = [
        f"{speeds['images_per_second']:,.0f} images/s"
        f" ({speeds['images_per_second_per_chip']:,.0f} a chip)",
        f"{speeds['step_ms']:,.0f} ms/step",
        f"input wait {100 * speeds['input_wait']:.0f} %",
        f"goodput {100 * speeds['goodput']:.0f} %",
    ]
    if "mfu" in speeds:
        words.insert(2, f"MFU {100 * speeds['mfu']:.1f} %")
    if speeds["save_seconds"]:
        words.append(f"saving {speeds['save_seconds']:.1f} s")
    return "  ".join(words)
