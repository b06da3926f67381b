"""Compiles the training and the evaluation step of a run, each once, for its only shapes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from noah_jax import distributed
from noah_jax.compilation import train_step_options
from noah_jax.data.batch import Batch
from noah_jax.tasks.task import Task
from noah_jax.train.device_augment import ApplyDraws
from noah_jax.train.mixing import Augment
from noah_jax.train.plan import Plan
from noah_jax.train.state import State, StateMaker
from noah_jax.train.step import StepMetrics, make_eval_step, make_train_step

TrainStep = Callable[[State, Batch], tuple[State, StepMetrics]]
EvalStep = Callable[[Any, Any, Batch, Any], Any]


@dataclasses.dataclass(frozen=True)
class StepCompiler:
    """Everything that the steps of a run are made of.

    Attributes:
      states: Makes the state; has the model, the optimizer, the seed and the devices.
      plan: Sizes of the batches and intervals.
      schedule: The learning rate by step.
      task: Defines loss and metrics.
      draw_shape: Shape of what the host draws for an image and the device applies; `None` if
        nothing is left to the device.
      apply_draws: Applies it.
      augment: Applied to the normalised images and their labels.
      ema_decay: Decay of the moving average; `None` keeps no average.
      mean: Mean of the pixels in 0..1, by which the images are normalised.
      std: Standard deviation of the pixels in 0..1, likewise.
    """

    states: StateMaker
    plan: Plan
    schedule: optax.Schedule
    task: Task
    draw_shape: tuple[int, int] | None
    apply_draws: ApplyDraws | None
    augment: Augment
    ema_decay: float | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def make_train_step(self) -> TrainStep:
        """Makes the training step, to be jitted; see `noah_jax.train.step`."""
        states = self.states
        return make_train_step(
            states.model,
            states.optimizer,
            self.schedule,
            seed=states.seed,
            apply_draws=self.apply_draws,
            augment=self.augment,
            ema_decay=self.ema_decay,
            frozen=states.frozen,
            shardings=states.shardings if states.sharded else None,
            log_every=self.plan.log_every,
            accumulate=self.plan.accumulate,
            **self._common,
        )

    @property
    def _common(self) -> dict[str, Any]:
        """The arguments that both steps take."""
        return {"mean": self.mean, "std": self.std, "task": self.task, "mesh": self.states.mesh}

    def trace_train_step(self) -> jax.stages.Traced:
        """Traces the training step for its only shapes; `.lower().compile()` compiles it."""
        step = jax.jit(
            self.make_train_step(),
            out_shardings=(self.states.shardings, distributed.replicated(self.states.mesh)),
            donate_argnums=0,
            compiler_options=train_step_options(self.states.mesh.devices.flat[0].platform),
        )
        return step.trace(self.states.abstract(), self._abstract_batch(self.plan.batch_size))

    def compile(self) -> tuple[TrainStep, EvalStep]:
        """Compiles both steps. Calling them with other shapes is an error.

        Returns:
          `train_step(state, batch) -> state, metrics`, which takes the memory of the state that
          it is given, and `eval_step(params, stats, batch, metrics) -> metrics`.
        """
        states = self.states
        eval_step = make_eval_step(states.model, sharded=states.sharded, **self._common)
        replicated = distributed.replicated(states.mesh)
        jitted_eval = jax.jit(
            eval_step,
            out_shardings=replicated,
            donate_argnums=3,
            compiler_options=states.model.evaluation_options(),
        )
        state = states.abstract()
        batch = self._abstract_batch(self.plan.eval_batch_size, mask=True)
        metrics = distributed.abstract_like(jax.eval_shape(self.task.empty), replicated)
        return (
            self.trace_train_step().lower().compile(),
            jitted_eval.lower(state["params"], state["stats"], batch, metrics).compile(),
        )

    @functools.cached_property
    def empty_eval_metrics(self) -> Callable[[], Any]:
        """Makes the metrics that an evaluation starts with, on every device."""
        return jax.jit(self.task.empty, out_shardings=distributed.replicated(self.states.mesh))

    def _abstract_batch(self, size: int, *, mask: bool = False) -> dict[str, Any]:
        shapes: dict[str, tuple[tuple[int, ...], str]] = {
            "image": ((size, *self.states.model.image_size, 3), "uint8"),
            "label": ((size, *self.task.label_shape), "int32"),
        }
        if mask:
            shapes["mask"] = ((size,), "bool")
        elif self.draw_shape is not None:
            shapes["draws"] = ((size, *self.draw_shape), "float32")
        sharding = distributed.batch_sharding(self.states.mesh)
        return {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
            for name, (shape, dtype) in shapes.items()
        }
