"""The pure train and eval steps over a plain state.

The state is a dict of `step`, `params`, `stats`, `opt_state` and `metrics`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from noah_jax.metrics import EvalMetrics, TrainMetrics, per_image
from noah_jax.models.base import Model

State = dict[str, Any]
Batch = dict[str, jax.Array]


def init_state(model: Model, optimizer: optax.GradientTransformation, seed: int) -> State:
    """A fresh state; jit it with output shardings and it is born where it belongs."""
    params, stats = model.init(jax.random.key(seed))
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "stats": stats,
        "opt_state": optimizer.init(params),
        "metrics": TrainMetrics.empty(),
    }


def normalise(images: jax.Array, mean: Any, std: Any) -> jax.Array:
    """uint8 images to float32, `(pixel / 255 - mean) / std` per channel."""
    mean = jnp.asarray(mean, jnp.float32) * 255
    std = jnp.asarray(std, jnp.float32) * 255
    return (images.astype(jnp.float32) - mean) / std


def make_train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    seed: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    label_smoothing: float = 0.0,
    log_every: int = 1,
) -> Callable[[State, Batch], tuple[State, TrainMetrics]]:
    """One training step, `(state, batch) -> (state, metrics)`.

    Random keys are a function of the seed and the step. The metrics run over the steps
    since the last multiple of `log_every`; they are part of the state, so a resumed run
    reports what the uninterrupted one does, and they are returned besides, so that the
    host can read them after the state was donated to the next step.

    Args:
      model: the model.
      optimizer: its state is part of the train state.
      schedule: the optimizer's learning rate by step, to report it.
      seed: seed of dropout and stochastic depth.
      mean: of the pixels in 0..1.
      std: of the pixels in 0..1.
      label_smoothing: see `metrics.per_image`.
      log_every: after how many steps the metrics start anew.
    """

    def train_step(state: State, batch: Batch) -> tuple[State, TrainMetrics]:
        key = jax.random.fold_in(jax.random.key(seed), state["step"])
        images = normalise(batch["image"], mean, std)

        def loss_fn(params):
            logits, stats = model.apply(params, state["stats"], images, train=True, key=key)
            values = per_image(logits, batch["label"], label_smoothing)
            return values["loss"].mean(), (stats, values)

        grads, (stats, values) = jax.grad(loss_fn, has_aux=True)(state["params"])
        updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
        fresh = state["step"] % log_every == 0
        metrics = jax.tree.map(lambda x: jnp.where(fresh, 0, x), state["metrics"])
        values["learning_rate"] = schedule(state["step"])
        metrics = _merge(metrics, TrainMetrics.single_from_model_output(**values))
        new_state = {
            "step": state["step"] + 1,
            "params": optax.apply_updates(state["params"], updates),
            "stats": stats,
            "opt_state": opt_state,
            "metrics": metrics,
        }
        return new_state, metrics

    return train_step


def _merge(metrics: Any, new: Any) -> Any:
    """The metrics with the new ones, in their own dtypes: JAX_ENABLE_X64 would widen them."""
    return jax.tree.map(lambda out, own: out.astype(own.dtype), metrics.merge(new), metrics)


def make_eval_step(
    model: Model, *, mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[Any, Any, Batch, EvalMetrics], EvalMetrics]:
    """One evaluation step, `(params, stats, batch, metrics) -> metrics`.

    Images whose `batch["mask"]` is false do not count.
    """

    def eval_step(params: Any, stats: Any, batch: Batch, metrics: EvalMetrics) -> EvalMetrics:
        images = normalise(batch["image"], mean, std)
        logits, _ = model.apply(params, stats, images, train=False)
        values = per_image(logits, batch["label"])
        return _merge(metrics, EvalMetrics.single_from_model_output(**values, mask=batch["mask"]))

    return eval_step
