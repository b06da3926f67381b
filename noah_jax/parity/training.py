"""Checks training: five steps from golden weights against the original's float64 run."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from noah_jax.compilation import QUICK_COMPILE
from noah_jax.config import default_config
from noah_jax.console import working
from noah_jax.models import get_family
from noah_jax.models.base import Model, Tree
from noah_jax.parity.golden_files import arrays_below, matching, read_json, read_npz, read_salt
from noah_jax.parity.models import golden_model
from noah_jax.pytorch.golden import golden_images, golden_tensor
from noah_jax.pytorch.mapping import to_torch
from noah_jax.tasks.single_label import per_image
from noah_jax.train.mixing import smooth
from noah_jax.train.optimizer import make_optimizer
from noah_jax.train.step import global_norm, update_ema

# The limit is FACTOR times PyTorch's own float32 deviation, plus FLOOR.
FACTOR, FLOOR = 10.0, 1e-4
# Limit of the first step's loss, for which PyTorch's deviation is not given.
FIRST_LOSS_LIMIT = 1e-5
# Limit of the run in float64, which is made if the float32 run misses its limit.
FLOAT64_LIMIT = 1e-6


@dataclasses.dataclass(frozen=True)
class TrainingCase:
    """A golden run of training.

    Attributes:
      name: Name of a registered model.
      spec: The model's entry in `models.json.gz`.
      settings: The model's entry in `train.json`.
      golden: The model's arrays in `train.npz`, without the name in their keys.
      salt: Salt of the golden vectors.
    """

    name: str
    spec: Mapping[str, Any]
    settings: Mapping[str, Any]
    golden: Mapping[str, np.ndarray]
    salt: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How far one quantity of a training case is from the original's.

    Attributes:
      what: "first loss", "loss", "grad", "grad_norm", "change" or "ema_change".
      error: Error of the float32 run here. It is absolute for losses, and relative to the norm of
        the golden values for everything else.
      torch_error: Error of PyTorch's float32 run; `None` for the first loss.
      limit: Largest error that agrees.
      float64_error: Error of the float64 run here; `None` if float32 was within all limits.
    """

    what: str
    error: float
    torch_error: float | None
    limit: float
    float64_error: float | None = None

    @property
    def agrees(self) -> bool:
        """Whether the error is within the limit, or nothing but rounding.

        With ReLUs and batches of four, one activation that rounding carries across zero moves the
        gradient by a thousandth. Whether that happens is chance, here and in PyTorch. A mistake
        would show in float64, rounding does not.
        """
        if self.error <= self.limit:
            return True
        return self.float64_error is not None and self.float64_error <= FLOAT64_LIMIT


def compare_training(case: TrainingCase) -> list[Comparison]:
    """Trains a model as the golden run was trained, and compares the two."""
    torch_errors = case.settings["torch_float32_deviation"]
    comparisons = []
    for what, error in _errors(case, "float32").items():
        if what == "first loss":
            comparisons.append(Comparison(what, error, None, FIRST_LOSS_LIMIT))
        else:
            limit = FACTOR * torch_errors[what] + FLOOR
            comparisons.append(Comparison(what, error, torch_errors[what], limit))
    if all(row.error <= row.limit for row in comparisons):
        return comparisons
    with jax.enable_x64(True):
        errors = _errors(case, "float64")
    return [dataclasses.replace(row, float64_error=errors[row.what]) for row in comparisons]


def _errors(case: TrainingCase, dtype: str) -> dict[str, float]:
    golden = case.golden
    errors = {}
    for what, values in _run(case, dtype).items():
        if isinstance(values, dict):
            reference = np.stack([golden[f"{what}/{key}"] for key in values])
            # Golden arrays hold norms and dot products with probes; those of the EMA norms alone.
            actual = np.stack(list(values.values()))[:, : reference.shape[1]]
            error = np.linalg.norm(actual - reference) / np.linalg.norm(reference)
        elif what == "loss":
            errors["first loss"] = float(abs(values[0] - golden[what][0]))
            error = np.abs(values - golden[what]).max()
        else:
            # The file gives PyTorch's deviation for the first step alone.
            error = abs(values[0] / golden[what][0] - 1)
        errors[what] = float(error)
    return errors


def _run(case: TrainingCase, dtype: str) -> dict[str, Any]:
    """Repeats the golden run here; describes every tensor by [norm, dot product with probe]."""
    settings = case.settings
    model, start = golden_model(case.name, case.spec, case.salt, dtype=dtype)
    start = jax.tree.map(lambda x: jnp.asarray(x, dtype), start)
    table = get_family(case.name).table
    optimizer = _optimizer(settings, model)

    # For five steps, compiling well would take longer than running slowly.
    @functools.partial(jax.jit, compiler_options=QUICK_COMPILE)
    def step(
        state: dict[str, Any], images: jax.Array, labels: jax.Array
    ) -> tuple[dict[str, Any], jax.Array, Tree]:
        def loss_fn(params: Tree) -> tuple[jax.Array, Tree]:
            logits, stats = model.apply(
                params, state["stats"], images, train=True, key=jax.random.key(0)
            )
            smoothing = settings["smoothing"]
            targets = smooth(labels, logits.shape[-1], smoothing) if smoothing else None
            loss = per_image(logits, labels, targets)["loss"].mean()
            return loss, stats

        (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state["params"])
        updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        new = {"params": params, "stats": stats}
        ema = update_ema(state["ema"], new, settings["ema"] or 0.0)
        return {**new, "opt_state": opt_state, "ema": ema}, loss, grads

    state = {**start, "opt_state": optimizer.init(start["params"]), "ema": start}
    losses, norms, first = [], [], None
    batch = settings["batch"]
    for index in range(settings["steps"]):
        images = golden_images(settings["image_size"], batch, f"{case.salt}step{index}")
        labels = np.random.RandomState(index).randint(0, settings["num_classes"], batch)
        state, loss, grads = step(state, images, jnp.asarray(labels))
        losses.append(float(loss))
        norms.append(float(global_norm(grads)))
        first = grads if first is None else first

    def summary(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return {key: _norm_and_dot(key, x) for key, x in to_torch(tree, table).items()}

    def change(end: Mapping[str, Any]) -> dict[str, np.ndarray]:
        weights = {key: end[key] for key in start}
        return summary(jax.tree.map(lambda a, b: np.float64(a) - np.float64(b), weights, start))

    out = {
        "loss": np.array(losses),
        "grad_norm": np.array(norms),
        "grad": summary({"params": first}),
        "change": change(state),
    }
    if settings["ema"]:
        out["ema_change"] = change(state["ema"])
    return out


def _optimizer(settings: Mapping[str, Any], model: Model) -> optax.GradientTransformation:
    config = default_config().optim
    config.name = settings["optimizer"]
    config.weight_decay = settings["weight_decay"]
    config.clip_grad_norm = settings["clip_grad_norm"]
    if settings["optimizer"] == "sgd":
        config.momentum = settings["momentum"]
    else:
        config.epsilon = settings["eps"]
    return make_optimizer(
        config,
        optax.constant_schedule(settings["lr"]),
        decay_all=not settings.get("no_decay_bn", True),
        no_decay=model.architecture.no_decay,
    )


def _norm_and_dot(key: str, x: np.ndarray) -> np.ndarray:
    """Computes a tensor's L2 norm and its dot product with the probe of its key."""
    x = np.asarray(x, np.float64)
    shape = x.shape if x.ndim > 1 else (*x.shape, 1)
    probe = golden_tensor("probe.weight" + key, shape).reshape(x.shape)
    return np.array([np.linalg.norm(x), (x * probe).sum()])


def check_training(folder: str, pattern: str) -> Iterator[bool]:
    """Prints a table of the training cases that match a pattern; yields whether each agrees."""
    salt = read_salt(folder)
    cases = read_json(folder, "train.json")
    specs = read_json(folder, "models.json.gz")
    names = matching(cases, pattern)
    width = max(map(len, names))
    print(f"{'training case':{width}} {'':12} {'error':>9} {'PyTorch float32':>15} {'limit':>9}")
    with read_npz(folder, "train.npz") as arrays:
        for name in names:
            golden = arrays_below(arrays, name)
            case = TrainingCase(name, specs[name], cases[name], golden, salt)
            with working(f"training {name}"):
                rows = compare_training(case)
            for row in rows:
                torch_error = "-" if row.torch_error is None else f"{row.torch_error:.2e}"
                verdict = "agrees" if row.agrees else "FAILED"
                if row.float64_error is not None and row.error > row.limit:
                    verdict += f" ({row.float64_error:.1e} in float64)"
                print(
                    f"{name:{width}} {row.what:12} {row.error:9.2e} {torch_error:>15}"
                    f" {row.limit:9.2e} {verdict}",
                    flush=True,
                )
            yield all(row.agrees for row in rows)
