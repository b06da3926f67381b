"""Images with several labels, or none: the losses, the task and the evaluation's metrics.

Labels are `[..., num_classes]` of 1 (present), 0 (absent) or -1 (ignored, such as VOC's
difficult objects). A class is predicted if its own sigmoid is above one half.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metrics as clu_metrics

from noah_jax.errors import InputError

LOSSES = ("sigmoid", "asymmetric")

ClassLoss = Callable[[jax.Array, jax.Array], jax.Array]  # takes logits and targets


def sigmoid_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Computes the binary cross entropy of each class.

    Args:
      logits: `[..., num_classes]`.
      targets: In 0..1, of the same shape.

    Returns:
      The losses, of the same shape.
    """
    return optax.sigmoid_binary_cross_entropy(logits, targets)


def asymmetric_loss(
    logits: jax.Array,
    targets: jax.Array,
    *,
    gamma_positive: float = 0.0,
    gamma_negative: float = 4.0,
    margin: float = 0.05,
    constant_focus: bool = False,
) -> jax.Array:
    """Computes the asymmetric loss of each class.

    Follows equation 7 of Ben-Baruch et al., 2020, "Asymmetric Loss For Multi-Label
    Classification".

    Args:
      logits: `[..., num_classes]`.
      targets: In 0..1, of the same shape.
      gamma_positive: Focusing parameter of present classes.
      gamma_negative: Focusing parameter of absent classes; a large value makes easy ones count
        little.
      margin: Probability below which an absent class does not count at all.
      constant_focus: Whether gradients take the focusing factors for constants, as the authors'
        own training does (`disable_torch_grad_focal_loss` in github.com/Alibaba-MIIL/ASL).

    Returns:
      The losses, of the same shape.
    """
    # Bases of powers stay above 0, where a power may have no finite derivative.
    tiny = jnp.finfo(jnp.result_type(logits, jnp.float32)).tiny
    shifted = jnp.maximum(jax.nn.sigmoid(logits) - margin, tiny)
    missing = jnp.maximum(jax.nn.sigmoid(-logits), tiny)
    # This is log(1 - shifted), without cancellation where the margin is 0.
    log_not = jax.nn.log_sigmoid(-logits) if margin == 0 else jnp.log1p(-shifted)
    positive_focus, negative_focus = missing**gamma_positive, shifted**gamma_negative
    if constant_focus:
        positive_focus, negative_focus = jax.lax.stop_gradient((positive_focus, negative_focus))
    positive = positive_focus * jax.nn.log_sigmoid(logits)
    negative = negative_focus * log_not
    return -(targets * positive + (1 - targets) * negative)


def make_loss(loss: str, asymmetric: Mapping[str, Any]) -> ClassLoss:
    """Makes the loss of each class.

    Args:
      loss: "sigmoid" or "asymmetric".
      asymmetric: The configuration's section `asymmetric`: the keyword arguments of
        `asymmetric_loss`. They are used only for loss="asymmetric".

    Raises:
      InputError: If the loss is unknown or a value is out of its range; names the key.
    """
    if loss not in LOSSES:
        raise InputError(
            f"loss must be one of {', '.join(LOSSES)} for images with several labels, got {loss!r}"
        )
    if loss == "sigmoid":
        return sigmoid_loss
    arguments = dict(asymmetric)
    for key in ("gamma_positive", "gamma_negative"):
        if not arguments[key] >= 0:
            raise InputError(f"asymmetric.{key} must be 0 or more, got {arguments[key]}")
    if not 0 <= arguments["margin"] < 1:
        raise InputError(f"asymmetric.margin must be in 0..1, got {arguments['margin']}")
    return lambda logits, targets: asymmetric_loss(logits, targets, **arguments)


@flax.struct.dataclass
class EvalOutputs:
    """The logits and labels of an evaluation's images, in their order.

    Attributes:
      loss: Average over the images so far.
      logits: float32 `[capacity, num_classes]`.
      labels: int32 `[capacity, num_classes]`.
      mask: bool `[capacity]`; false for padding.
      length: Number of rows that are filled so far, int32 `[]`.
    """

    loss: clu_metrics.Average
    logits: jax.Array
    labels: jax.Array
    mask: jax.Array
    length: jax.Array


@dataclasses.dataclass(frozen=True)
class MultiLabel:
    """The task of images with any number of labels, see `noah_jax.tasks.task.Task`.

    The loss of an image is averaged over the classes that are not ignored. `top1` is 1 if the
    class with the highest logit is among the image's labels.

    Attributes:
      num_classes: Number of classes.
      loss: Computes the loss of each class.
      capacity: Number of rows of an evaluation: its images and the padding of its last batch.
    """

    num_classes: int
    loss: ClassLoss
    capacity: int

    @property
    def label_shape(self) -> tuple[int, ...]:
        return (self.num_classes,)

    @property
    def accuracy_words(self) -> str:
        return "images with a right top class"

    def per_image(
        self, logits: jax.Array, labels: jax.Array, targets: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        counted = labels >= 0
        losses = self.loss(
            logits, (labels == 1).astype(jnp.float32) if targets is None else targets
        )
        first = jnp.take_along_axis(labels, logits.argmax(-1)[:, None], axis=-1)[:, 0]
        return {
            "loss": jnp.where(counted, losses, 0).sum(-1) / jnp.maximum(counted.sum(-1), 1),
            "top1": (first == 1).astype(jnp.float32),
        }

    def empty(self) -> EvalOutputs:
        shape = (self.capacity, self.num_classes)
        return EvalOutputs(
            loss=clu_metrics.Average.empty(),
            logits=jnp.zeros(shape, jnp.float32),
            labels=jnp.zeros(shape, jnp.int32),
            mask=jnp.zeros(self.capacity, bool),
            length=jnp.zeros((), jnp.int32),
        )

    def update(
        self, accumulated: EvalOutputs, logits: jax.Array, labels: jax.Array, mask: jax.Array
    ) -> EvalOutputs:
        def append(rows: jax.Array, batch: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(rows, batch, accumulated.length, axis=0)

        loss = self.per_image(logits, labels)["loss"]
        return EvalOutputs(
            loss=accumulated.loss.merge(clu_metrics.Average.from_model_output(loss, mask=mask)),
            logits=append(accumulated.logits, logits.astype(jnp.float32)),
            labels=append(accumulated.labels, labels),
            mask=append(accumulated.mask, mask),
            length=accumulated.length + len(logits),
        )

    def summarise(self, accumulated: EvalOutputs) -> dict[str, float]:
        logits, labels, mask = jax.device_get(
            (accumulated.logits, accumulated.labels, accumulated.mask)
        )
        values = measure(logits[mask], labels[mask])
        del values["per_class"]
        loss = jax.device_get(accumulated.loss)
        return {
            **values,
            "loss": float(loss.total) / float(loss.count),
            "examples": int(mask.sum()),
        }


def average_precision(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Computes the average precision of one class, as each benchmark defines it.

    Equal scores all have the precision of the last of them, so that their order does not matter.

    Args:
      scores: float `[images]`.
      labels: 1, 0 or -1, `[images]`.

    Returns:
      `exact`: the mean of the precisions at every image that has the class (as in papers on
      multi-label COCO). `voc`: the area under the precision made monotonous (VOC 2010 and
      later). `voc07`: the mean of that precision at the recalls 0, 0.1, ... 1 (VOC 2007). All
      are NaN if no image has the class.
    """
    counted = labels >= 0
    scores, labels = scores[counted], labels[counted]
    positives = int((labels == 1).sum())
    if not positives:
        return dict.fromkeys(("exact", "voc", "voc07"), float("nan"))
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(labels[order] == 1)
    # The last position of each run of equal scores.
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits, precision = hits[ends], hits[ends] / (ends + 1)
    recall = hits / positives
    recall_steps = np.diff(recall, prepend=0)
    monotonous = np.maximum.accumulate(precision[::-1])[::-1]
    # The tolerance makes 3 of 10 reach a recall of 0.3, whatever the quotient's last bit.
    reached = np.searchsorted(recall + 1e-9, np.arange(11) / 10)
    return {
        "exact": float((precision * recall_steps).sum()),
        "voc": float((monotonous * recall_steps).sum()),
        "voc07": float(np.append(monotonous, 0)[reached].mean()),
    }


def measure(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Computes the metrics of an evaluation, in percent.

    Args:
      logits: float `[images, num_classes]`.
      labels: 1, 0 or -1, `[images, num_classes]`.

    Returns:
      `map`, `map_voc`, `map_voc07`: means of `average_precision` over the classes that some
      image has. `cp`, `cr`, `cf1`: precision and recall averaged over these classes, and their
      harmonic mean. `op`, `or`, `of1`: the same over all decisions at once. The same names with
      `_top3`: where only an image's three most likely classes may be predicted. `per_class`: list
      of the exact average precision of each class.
    """
    each = [
        average_precision(score, label) for score, label in zip(logits.T, labels.T, strict=True)
    ]
    predicted, present = (logits > 0) & (labels >= 0), labels == 1
    values = {
        "map": _mean([ap["exact"] for ap in each]),
        "map_voc": _mean([ap["voc"] for ap in each]),
        "map_voc07": _mean([ap["voc07"] for ap in each]),
        **_precision_and_recall(predicted, present),
    }
    # What is ignored takes no place among an image's three.
    scores = np.where(labels >= 0, logits, -np.inf)
    among = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1) < 3
    values |= {
        f"{key}_top3": value
        for key, value in _precision_and_recall(predicted & among, present).items()
    }
    values = {key: 100 * float(value) for key, value in values.items()}
    return values | {"per_class": [100 * ap["exact"] for ap in each]}


def _precision_and_recall(predicted: np.ndarray, present: np.ndarray) -> dict[str, float]:
    """Returns precision, recall and their harmonic mean, by class and over all decisions.

    Args:
      predicted: bool `[images, num_classes]`.
      present: Likewise.
    """
    correct = (predicted & present).sum(0)
    classes = present.any(0)
    values = {
        "cp": _mean((correct / np.maximum(predicted.sum(0), 1))[classes]),
        "cr": _mean((correct / np.maximum(present.sum(0), 1))[classes]),
        "op": correct.sum() / max(predicted.sum(), 1),
        "or": correct.sum() / max(present.sum(), 1),
    }
    for kind in "co":
        p, r = values[f"{kind}p"], values[f"{kind}r"]
        values[f"{kind}f1"] = 2 * p * r / (p + r) if p + r else 0.0
    return values


def _mean(values: Any) -> float:
    """Returns the mean of the values that are not NaN; NaN if there are none."""
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
