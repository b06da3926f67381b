"""The pure train and eval steps over a plain state.

The state is a dict of `step`, `params`, `stats`, `opt_state` and `metrics`, and of `ema` where
a moving average of parameters and statistics is kept.
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from noah_jax import distributed
from noah_jax.errors import InputError
from noah_jax.inference.step import make_predict_step, traced_on
from noah_jax.models.base import Model
from noah_jax.models.images import normalise
from noah_jax.nn.dropout import MicroBatchKey
from noah_jax.tasks.metrics import TrainMetrics
from noah_jax.tasks.single_label import SingleLabel
from noah_jax.tasks.task import Task
from noah_jax.train.mixing import Augment
from noah_jax.train.param_groups import trainable, with_frozen

State = dict[str, Any]
Batch = dict[str, jax.Array]

_AUGMENTATION = 2**32 - 1  # folded in apart from every step
_SINGLE_LABEL = SingleLabel()


def init_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    seed: int,
    *,
    ema: bool = False,
    frozen: Collection[str] = (),
) -> State:
    """A fresh state; jit it with output shardings and it is born where it belongs.

    Args:
      model: the model.
      optimizer: the optimizer.
      seed: of the weights.
      ema: whether to keep a moving average, which starts at the fresh weights.
      frozen: paths of the parameters that the optimizer knows nothing of.
    """
    params, stats = model.init(jax.random.key(seed))
    average = {"ema": {"params": params, "stats": stats}} if ema else {}
    return average | {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "stats": stats,
        "opt_state": optimizer.init(trainable(params, frozen)),
        "metrics": TrainMetrics.empty(),
    }


def make_train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    seed: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    task: Task = _SINGLE_LABEL,
    augment: Augment | None = None,
    ema_decay: float | None = None,
    frozen: Collection[str] = (),
    log_every: int = 1,
    accumulate: int = 1,
    mesh: Mesh | None = None,
    shardings: State | None = None,
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
      seed: seed of dropout, stochastic depth and `augment`.
      mean: of the pixels in 0..1.
      std: of the pixels in 0..1.
      task: the loss of an image.
      augment: applied to the normalised images, see `data.mixing`; `None` for nothing.
      ema_decay: what the moving average keeps of itself after every step; `None` for none.
      frozen: paths of the parameters that are not trained: not a bit of them changes, and
        nothing is computed for their sake.
      log_every: after how many steps the metrics start anew.
      accumulate: in how many parts the batch is computed, one after another, see
        `check_accumulate`. Random numbers, statistics and gradients are those of the whole.
      mesh: the devices that share the batch, for kernels that the compiler cannot partition.
      shardings: of the state, if the devices share that too: a step gathers the parameters, and
        each device updates its own part.
    """

    def train_step(state: State, batch: Batch) -> tuple[State, TrainMetrics]:
        root = jax.random.key(seed)
        key = jax.random.fold_in(root, state["step"])
        images, targets = normalise(batch["image"], mean, std), None
        if augment is not None:
            augment_root = jax.random.fold_in(root, _AUGMENTATION)
            augment_key = jax.random.fold_in(augment_root, state["step"])
            images, targets = augment(augment_key, images, batch["label"])

        whole = state["params"]
        if shardings is not None:
            whole = _placed(whole, distributed.replicated(mesh))

        def loss_fn(trained, images, labels, targets, key):
            params = with_frozen(trained, whole)
            logits, stats = model.apply(params, state["stats"], images, train=True, key=key)
            values = task.per_image(logits, labels, targets)
            return values["loss"].mean(), (stats, values)

        def gradients(images, labels, targets, key):
            arguments = trainable(whole, frozen), images, labels, targets, key
            grads, (stats, values) = jax.grad(loss_fn, has_aux=True)(*arguments)
            if shardings is not None:
                grads = _placed(grads, trainable(shardings["params"], frozen))
            return (grads, stats), values

        trained = trainable(state["params"], frozen)
        if accumulate == 1:
            (grads, stats), values = gradients(images, batch["label"], targets, key)
        else:
            cut = _cutter(model, accumulate, len(images), mesh)
            parts = jax.tree.map(
                cut, (images, batch["label"], targets, jnp.arange(len(images), dtype=jnp.int32))
            )

            def add(total, part):
                *arrays, numbers = part
                new, values = gradients(*arrays, MicroBatchKey(key, numbers))
                return jax.tree.map(jnp.add, total, new), values

            # Of BatchNorm's running statistics each part makes new ones from the same old ones.
            zeros = jax.tree.map(jnp.zeros_like, (trained, state["stats"]))
            total, values = jax.lax.scan(add, zeros, parts)
            grads, stats = jax.tree.map(lambda x: x / accumulate, total)
            values = jax.tree.map(jnp.ravel, values)
        updates, opt_state = optimizer.update(grads, state["opt_state"], trained)
        trained = optax.apply_updates(trained, updates)
        fresh = state["step"] % log_every == 0
        metrics = jax.tree.map(lambda x: jnp.where(fresh, 0, x), state["metrics"])
        values["learning_rate"] = schedule(state["step"])
        new = TrainMetrics.single_from_model_output(**values)
        metrics = _in_dtypes_of(metrics, metrics.merge(new))
        new_state = {
            "step": state["step"] + 1,
            "params": with_frozen(trained, state["params"]),
            "stats": stats,
            "opt_state": opt_state,
            "metrics": metrics,
        }
        if ema_decay is not None:
            new = {key: new_state[key] for key in state["ema"]}
            new_state["ema"] = update_ema(state["ema"], new, ema_decay)
        return new_state, metrics

    return traced_on(mesh, train_step)


def check_accumulate(accumulate: int, batch_size: int, model: Model, devices: int) -> None:
    """Raises a ValueError unless a batch can be computed in so many parts.

    Args:
      accumulate: number of parts.
      batch_size: images per step over all devices.
      model: the parts must consist of whole groups of its BatchNorm.
      devices: each must get an equal share of every part.
    """
    name = f"optim.accumulate={accumulate}"
    if accumulate < 1 or batch_size % (accumulate * devices):
        raise InputError(
            f"{name} must be at least 1 and cut batch_size={batch_size} into parts that the"
            f" {devices} device(s) share evenly"
        )
    if accumulate == 1 or not model.abstract()[1]:
        return
    group, part = model.arguments["batch_norm_group"], batch_size // accumulate
    if group is None or part % group:
        raise InputError(
            f"{name} makes parts of {part} images, which must consist of whole BatchNorm groups;"
            f" model.batch_norm_group is {'the whole batch' if group is None else group}, choose a"
            f" divisor of {part}"
        )


def _cutter(
    model: Model, count: int, batch_size: int, mesh: Mesh | None
) -> Callable[[jax.Array], jax.Array]:
    """What cuts `[batch, ...]` into `[count, batch / count, ...]`.

    Each device takes of its own images in every part, so that none is sent, unless a BatchNorm
    group is larger than what that is.
    """
    devices = 1 if mesh is None else mesh.size
    group = (model.arguments["batch_norm_group"] if model.abstract()[1] else None) or 1
    runs = devices if batch_size // (count * devices) % group == 0 else 1

    def cut(x: jax.Array) -> jax.Array:
        x = x.reshape(runs, count, -1, *x.shape[1:]).swapaxes(0, 1)
        x = x.reshape(count, -1, *x.shape[3:])
        if mesh is None:
            return x
        return _placed(x, NamedSharding(mesh, PartitionSpec(None, *mesh.axis_names)))

    return cut


def _placed(tree: Any, shardings: Any) -> Any:
    """The same, on these devices; inside a jitted function."""
    return jax.lax.with_sharding_constraint(tree, shardings)


def update_ema(average: Any, new: Any, decay: float) -> Any:
    """`decay * average + (1 - decay) * new`, of trees.

    Written as a correction: in float32 `decay` and `1 - decay` do not add up to one, and over
    the thousands of steps that a decay near one remembers, that would scale the weights.
    """
    return jax.tree.map(lambda a, b: a + (1 - decay) * (b - a), average, new)


def _in_dtypes_of(old: Any, new: Any) -> Any:
    """The new metrics in the dtypes of the old: JAX_ENABLE_X64 would widen them."""
    return jax.tree.map(lambda out, own: out.astype(own.dtype), new, old)


def make_eval_step(
    model: Model,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    task: Task = _SINGLE_LABEL,
    mesh: Mesh | None = None,
    sharded: bool = False,
) -> Callable[[Any, Any, Batch, Any], Any]:
    """One evaluation step, `(params, stats, batch, metrics) -> metrics`.

    The metrics are those of the task; images whose `batch["mask"]` is false do not count. `mesh`
    is that of `make_train_step`; `sharded` says that the devices share the parameters.
    """

    predict_step = make_predict_step(model, mean=mean, std=std, mesh=mesh)

    def eval_step(params: Any, stats: Any, batch: Batch, metrics: Any) -> Any:
        if sharded:
            params = _placed(params, distributed.replicated(mesh))
        logits = predict_step(params, stats, batch["image"])
        return _in_dtypes_of(metrics, task.update(metrics, logits, batch["label"], batch["mask"]))

    return eval_step
