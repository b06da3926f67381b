"""Defines one training step and one evaluation step as pure functions of the state.

For the state see `noah_jax.train.state`.
"""

from collections.abc import Callable, Collection
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from noah_jax import distributed
from noah_jax.data.batch import Batch
from noah_jax.inference.step import make_predict_step, traced_on
from noah_jax.models.base import Model
from noah_jax.models.images import normalise
from noah_jax.nn.dropout import Key, MicroBatchKey
from noah_jax.tasks.metrics import TrainMetrics
from noah_jax.tasks.single_label import SingleLabel
from noah_jax.tasks.task import Task
from noah_jax.train.accumulation import make_cutter
from noah_jax.train.device_augment import ApplyDraws
from noah_jax.train.mixing import Augment
from noah_jax.train.param_groups import trainable, with_frozen
from noah_jax.train.state import State

_AUGMENTATION = 2**32 - 1  # Folded into the root key; no step has this number.
_SINGLE_LABEL = SingleLabel()


@flax.struct.dataclass
class StepMetrics(TrainMetrics):
    """What a training step reports: averages since the last log line, and norms of this step.

    The norms are global L2 norms over all trained parameters, float32 scalars.

    Attributes:
      grad_norm: Norm of the loss's gradient over the whole batch, before clipping.
      param_norm: Norm of the parameters after the step.
      update_norm: Norm of what the optimizer added to the parameters.
    """

    grad_norm: jax.Array
    param_norm: jax.Array
    update_norm: jax.Array


def make_train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    seed: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    task: Task = _SINGLE_LABEL,
    apply_draws: ApplyDraws | None = None,
    augment: Augment | None = None,
    ema_decay: float | None = None,
    frozen: Collection[str] = (),
    log_every: int = 1,
    accumulate: int = 1,
    mesh: Mesh | None = None,
    shardings: State | None = None,
) -> Callable[[State, Batch], tuple[State, StepMetrics]]:
    """Makes the training step `(state, batch) -> (state, metrics)`.

    Random keys are a function of the seed and the step. The averages run over the steps since the
    last multiple of `log_every`. They are part of the state, so that a resumed run reports what
    the uninterrupted run does, and they are returned as well, so that the host can still read
    them after the state was donated to the next step. The norms are only returned.

    Args:
      model: The model.
      optimizer: The optimizer; its state is part of the training state.
      schedule: The optimizer's learning rate by step, which is reported.
      seed: Seed for dropout, stochastic depth and `augment`.
      mean: Mean of the pixels in 0..1, by which the images are normalised.
      std: Standard deviation of the pixels in 0..1, likewise.
      task: Defines the loss of an image.
      apply_draws: Applies the batch's `draws` to its images, see `noah_jax.train.device_augment`.
      augment: Applied to the normalised images, see `noah_jax.train.mixing`.
      ema_decay: Decay of the moving average; `None` keeps no average.
      frozen: Paths of the parameters that are not trained. Not a bit of them changes, and no
        gradient is computed for their sake.
      log_every: Number of steps after which the averages start anew.
      accumulate: Number of micro-batches that a batch is computed in, one after another, see
        `noah_jax.train.accumulation`. Random numbers, statistics and gradients are those of the
        whole batch.
      mesh: The devices that share the batch, for kernels that the compiler cannot partition.
      shardings: The state's shardings, if the devices share the state too. A step then gathers
        the parameters, and each device updates its own shard.
    """

    def train_step(state: State, batch: Batch) -> tuple[State, StepMetrics]:
        # ---- Random keys, normalised and augmented images.
        root = jax.random.key(seed)
        key = jax.random.fold_in(root, state["step"])
        labels = jnp.asarray(batch["label"])
        pixels = jnp.asarray(batch["image"])
        if apply_draws is not None:
            pixels = apply_draws(pixels, jnp.asarray(batch["draws"]))
        images, targets = normalise(pixels, mean, std), None
        if augment is not None:
            augment_root = jax.random.fold_in(root, _AUGMENTATION)
            augment_key = jax.random.fold_in(augment_root, state["step"])
            images, targets = augment(augment_key, images, labels)

        # ---- Gradients, of the batch at once or of one micro-batch after another.
        whole = state["params"]
        if mesh is not None and shardings is not None:
            whole = _placed(whole, distributed.replicated(mesh))

        def loss_fn(
            trained: Any, images: jax.Array, labels: jax.Array, targets: jax.Array | None, key: Key
        ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
            params = with_frozen(trained, whole)
            logits, stats = model.apply(params, state["stats"], images, train=True, key=key)
            values = task.per_image(logits, labels, targets)
            return values["loss"].mean(), (stats, values)

        def gradients(
            images: jax.Array, labels: jax.Array, targets: jax.Array | None, key: Key
        ) -> tuple[tuple[Any, Any], dict[str, jax.Array]]:
            arguments = trainable(whole, frozen), images, labels, targets, key
            grads, (stats, values) = jax.grad(loss_fn, has_aux=True)(*arguments)
            if shardings is not None:
                grads = _placed(grads, trainable(shardings["params"], frozen))
            return (grads, stats), values

        trained = trainable(state["params"], frozen)
        if accumulate == 1:
            (grads, stats), values = gradients(images, labels, targets, key)
        else:
            cut = make_cutter(model, accumulate, len(images), mesh)
            numbers = jnp.arange(len(images), dtype=jnp.int32)
            micro_batches = jax.tree.map(cut, (images, labels, targets, numbers))

            def add(total: Any, micro_batch: Any) -> tuple[Any, dict[str, jax.Array]]:
                images, labels, targets, numbers = micro_batch
                new, values = gradients(images, labels, targets, MicroBatchKey(key, numbers))
                return jax.tree.map(jnp.add, total, new), values

            # Every micro-batch updates BatchNorm's running statistics from the same starting
            # values; like the gradients, they are averaged below.
            zeros = jax.tree.map(jnp.zeros_like, (trained, state["stats"]))
            total, values = jax.lax.scan(add, zeros, micro_batches)
            grads, stats = jax.tree.map(lambda x: x / accumulate, total)
            values = jax.tree.map(jnp.ravel, values)

        # ---- The update.
        updates, opt_state = optimizer.update(grads, state["opt_state"], trained)
        trained = optax.apply_updates(trained, updates)

        # ---- What is reported.
        fresh = state["step"] % log_every == 0
        averages = jax.tree.map(lambda x: jnp.where(fresh, 0, x), state["metrics"])
        values["learning_rate"] = schedule(state["step"])
        new = TrainMetrics.single_from_model_output(**values)
        averages = _in_dtypes_of(averages, averages.merge(new))
        metrics = StepMetrics(
            **vars(averages),
            grad_norm=global_norm(grads),
            param_norm=global_norm(trained),
            update_norm=global_norm(updates),
        )
        new_state = {
            "step": state["step"] + 1,
            "params": with_frozen(trained, state["params"]),
            "stats": stats,
            "opt_state": opt_state,
            "metrics": averages,
        }
        if ema_decay is not None:
            new_weights = {key: new_state[key] for key in state["ema"]}
            new_state["ema"] = update_ema(state["ema"], new_weights, ema_decay)
        return new_state, metrics

    return traced_on(mesh, train_step)


def make_eval_step(
    model: Model,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    task: Task = _SINGLE_LABEL,
    mesh: Mesh | None = None,
    sharded: bool = False,
) -> Callable[[Any, Any, Batch, Any], Any]:
    """Makes the evaluation step `(params, stats, batch, metrics) -> metrics`.

    The metrics are those of the task. Images whose `batch["mask"]` is false do not count.

    Args:
      model: The model.
      mean: Mean of the pixels in 0..1, by which the images are normalised.
      std: Standard deviation of the pixels in 0..1, likewise.
      task: Defines the metrics.
      mesh: The devices that share the batch.
      sharded: Whether the devices share the parameters too.
    """
    predict_step = make_predict_step(model, mean=mean, std=std, mesh=mesh)

    def eval_step(params: Any, stats: Any, batch: Batch, metrics: Any) -> Any:
        if mesh is not None and sharded:
            params = _placed(params, distributed.replicated(mesh))
        logits = predict_step(params, stats, jnp.asarray(batch["image"]))
        labels, mask = jnp.asarray(batch["label"]), jnp.asarray(batch["mask"])
        return _in_dtypes_of(metrics, task.update(metrics, logits, labels, mask))

    return eval_step


def update_ema(average: Any, new: Any, decay: float) -> Any:
    """Returns `decay * average + (1 - decay) * new` for two trees of arrays.

    It is computed as a correction to the average. In float32 `decay` and `1 - decay` do not add
    up to one, which would scale the weights over the thousands of steps that a decay near one
    remembers.
    """
    return jax.tree.map(lambda a, b: a + (1 - decay) * (b - a), average, new)


def global_norm(tree: Any) -> jax.Array:
    """Returns the L2 norm over all arrays of a tree, float32."""
    squares = [jnp.square(x.astype(jnp.float32)).sum() for x in jax.tree.leaves(tree)]
    return jnp.sqrt(jnp.stack(squares).sum())


def _placed(tree: Any, shardings: Any) -> Any:
    """Constrains the shardings of a tree inside a jitted function."""
    return jax.lax.with_sharding_constraint(tree, shardings)


def _in_dtypes_of(old: Any, new: Any) -> Any:
    """Casts new metrics to the dtypes of the old ones, which JAX_ENABLE_X64 would widen."""
    return jax.tree.map(lambda value, before: value.astype(before.dtype), new, old)
