"""What the training loop tells while it runs: losses, speeds, and where its time goes."""

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from noah_jax import console
from noah_jax.console import say
from noah_jax.errors import NonFiniteError
from noah_jax.tasks.metrics import TrainMetrics, as_floats
from noah_jax.train import nonfinite as finite
from noah_jax.train import throughput
from noah_jax.train.metric_writer import MetricWriter
from noah_jax.train.setup import Experiment


class Progress:
    """Reads the metrics one log interval late, tells them, and stops at a non-finite loss.

    Args:
      experiment: what is trained.
      directory: the run's folder.
      writer: of the metrics.
      start_step: the step that this start resumes after.
      started: when this start began, in seconds since the epoch.
      compile_seconds: what compiling the steps took; told with the first metrics.
    """

    def __init__(
        self,
        experiment: Experiment,
        directory: epath.Path,
        writer: MetricWriter,
        *,
        start_step: int,
        started: float,
        compile_seconds: float,
    ):
        self._experiment = experiment
        self._directory = directory
        self._writer = writer
        self._goodput = throughput.Goodput(directory, start_step=start_step, started=started)
        self._step_flops = _step_flops(experiment)
        self._once = {"compile_seconds": compile_seconds}
        self._losses: list[tuple[int, Any]] = []  # by step, of which none was read
        self._pending: tuple | None = None
        self._last_step = start_step
        self._last_seconds = 0.0  # of training, at the last log line
        self._seconds = 0.0  # of training since this start, pauses left out
        self._since: float | None = time.perf_counter()
        self._host_seconds = 0.0
        self._wait_seconds = 0.0
        self._save_seconds = 0.0

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

    @contextlib.contextmanager
    def saving(self, step: int) -> Iterator[None]:
        """Counts the time for which starting to save a checkpoint keeps the loop."""
        begin = time.perf_counter()
        yield
        self._save_seconds += time.perf_counter() - begin
        self._goodput.save(step, self._trained())

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
        trained = self._trained()
        seconds = trained - self._last_seconds
        steps = step - self._last_step
        images_per_second = steps * self._experiment.config.batch_size / seconds
        devices = self._experiment.mesh.size
        speeds = {
            "images_per_second": images_per_second,
            "images_per_second_per_chip": images_per_second / devices,
            "step_ms": 1000 * seconds / steps,
            "input_wait": self._wait_seconds / seconds,
            "host_ms": 1000 * self._host_seconds / steps,
            "save_seconds": self._save_seconds,
            "goodput": self._goodput.share(trained),
            **self._once,
        }
        peak = throughput.peak_flops(self._experiment.mesh.devices.flat[0].device_kind)
        if peak is not None and self._step_flops is not None:
            speeds["mfu"] = self._step_flops * steps / seconds / (devices * peak)
        self._once = {}
        self._last_step, self._last_seconds = step, trained
        self._host_seconds = self._wait_seconds = self._save_seconds = 0.0
        self._flush()
        self._pending = (step, metrics, steps / seconds, speeds)

    def pause(self) -> None:
        """Tells what is pending and stops the clock: what follows is not training."""
        self._flush()
        if self._losses:
            jax.block_until_ready(self._losses[-1])  # the steps under way are training
        self._seconds, self._since = self._trained(), None

    def go_on(self) -> None:
        """Starts the clock again."""
        self._since = time.perf_counter()

    def goodput(self) -> float:
        """The share of the time since the run's first start that led to the present weights."""
        return self._goodput.share(self._trained())

    def _trained(self) -> float:
        """Seconds of training since this start."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self._seconds + running

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
            f"  loss {values['loss']:.4f}  accuracy {accuracy:.2f} %  {_describe(speeds)}"
            f"  {console.duration(left)} left"
        )

    def _check_losses(self) -> None:
        """Raises a NonFiniteError at the first step whose loss is not finite, if there is one."""
        step = finite.first_bad_step(self._losses)
        if step is not None:
            raise self._non_finite(step, "the loss")

    def _non_finite(self, step: int, what: str, **facts: Any) -> NonFiniteError:
        sampler = self._experiment.sampler
        rows = range(sampler.batch_size)
        facts |= {
            "learning_rate": float(self._experiment.schedule(step - 1)),
            "epoch": (step - 1) / self._experiment.steps_per_epoch,
            "image_indices": [sampler.at(step - 1, row)[1] for row in rows],
        }
        path = finite.dump(self._directory, step, facts)
        return NonFiniteError(
            f"{what} is not finite at step {step}; nothing of it is saved, {path} says which images"
            " it had. The same command would come to it again: lower optim.learning_rate, set"
            " optim.clip_grad_norm, or start from another seed"
        )


def _step_flops(experiment: Experiment) -> float | None:
    """FLOPs of a step on all devices; `None` where frozen parameters save an unknown part."""
    if experiment.groups.frozen:
        return None
    return experiment.config.batch_size * throughput.train_flops(experiment.model)


def _describe(speeds: dict[str, float]) -> str:
    """Speeds as a part of the log line."""
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
