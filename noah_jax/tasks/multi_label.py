"""Losses and measures of images that have several labels, or none.

Labels are 1 (there), 0 (not there) or -1 (not to be counted, such as VOC's difficult objects),
`[..., num_classes]`; a class is predicted where its own sigmoid is above one half.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from noah_jax.errors import InputError

LOSSES = ("sigmoid", "asymmetric")


def sigmoid_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Binary cross entropy of each class.

    Args:
      logits: `[..., num_classes]`.
      targets: in 0..1, of the same shape.
    """
    return optax.sigmoid_binary_cross_entropy(logits, targets)


def asymmetric_loss(
    logits: jax.Array,
    targets: jax.Array,
    *,
    gamma_positive: float = 0.0,
    gamma_negative: float = 4.0,
    margin: float = 0.05,
) -> jax.Array:
    """The asymmetric loss of each class (Ben-Baruch et al., 2020, "Asymmetric Loss For
    Multi-Label Classification", equation 7).

    Args:
      logits: `[..., num_classes]`.
      targets: in 0..1, of the same shape.
      gamma_positive: focusing of the classes that are there.
      gamma_negative: focusing of those that are not; easy ones hardly count.
      margin: probability below which a class that is not there does not count at all.
    """
    # Kept from 0, where a power may have no finite derivative.
    tiny = jnp.finfo(jnp.result_type(logits, jnp.float32)).tiny
    shifted = jnp.maximum(jax.nn.sigmoid(logits) - margin, tiny)
    missing = jnp.maximum(jax.nn.sigmoid(-logits), tiny)
    # log(1 - shifted), without cancellation where nothing was shifted away.
    log_not = jax.nn.log_sigmoid(-logits) if margin == 0 else jnp.log1p(-shifted)
    positive = missing**gamma_positive * jax.nn.log_sigmoid(logits)
    negative = shifted**gamma_negative * log_not
    return -(targets * positive + (1 - targets) * negative)


def make_loss(config: Mapping[str, Any]) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The loss of each class that a configuration names.

    Args:
      config: its `loss`, "sigmoid" or "asymmetric", and `asymmetric`'s arguments.

    Raises:
      ValueError: on another loss or a value out of its range; names the key.
    """
    if config["loss"] not in LOSSES:
        raise InputError(
            f"loss must be one of {', '.join(LOSSES)} for images with several labels, got"
            f" {config['loss']!r}"
        )
    if config["loss"] == "sigmoid":
        return sigmoid_loss
    arguments = dict(config["asymmetric"])
    for key in ("gamma_positive", "gamma_negative"):
        if not arguments[key] >= 0:
            raise InputError(f"asymmetric.{key} must be 0 or more, got {arguments[key]}")
    if not 0 <= arguments["margin"] < 1:
        raise InputError(f"asymmetric.margin must be in 0..1, got {arguments['margin']}")
    return lambda logits, targets: asymmetric_loss(logits, targets, **arguments)


def average_precision(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Average precision of one class, as each benchmark defines it.

    Equal scores have the precision of the last of them, so that their order does not matter.

    Args:
      scores: float `[images]`.
      labels: 1, 0 or -1, `[images]`.

    Returns:
      `exact`: the mean of the precisions at every image that has the class (COCO's multi-label
      papers); `voc`: the area under the precision made monotonous (VOC 2010 and later); `voc07`:
      its mean at the recalls 0, 0.1, ... 1 (VOC 2007). NaN where no image has the class.
    """
    counted = labels >= 0
    scores, labels = scores[counted], labels[counted]
    positives = int((labels == 1).sum())
    if not positives:
        return dict.fromkeys(("exact", "voc", "voc07"), float("nan"))
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(labels[order] == 1)
    # Where the last of equal scores stands.
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits, precision = hits[ends], hits[ends] / (ends + 1)
    recall = hits / positives
    gained = np.diff(recall, prepend=0)
    monotonous = np.maximum.accumulate(precision[::-1])[::-1]
    # A recall of 0.3 is reached at 3 of 10, whatever the last bit of the quotient.
    reached = np.searchsorted(recall + 1e-9, np.arange(11) / 10)
    return {
        "exact": float((precision * gained).sum()),
        "voc": float((monotonous * gained).sum()),
        "voc07": float(np.append(monotonous, 0)[reached].mean()),
    }


def measure(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """What is reported of an evaluation, in percent.

    Args:
      logits: float `[images, num_classes]`.
      labels: 1, 0 or -1, `[images, num_classes]`.

    Returns:
      `map`, `map_voc`, `map_voc07`: means over the classes of `average_precision`, those that
      no image has left out. `cp`, `cr`, `cf1`: precision and recall averaged over the classes,
      and their harmonic mean; `op`, `or`, `of1`: over all decisions at once. `per_class`: the
      exact average precision of each.
    """
    each = [
        average_precision(score, label) for score, label in zip(logits.T, labels.T, strict=True)
    ]
    predicted, there = (logits > 0) & (labels >= 0), labels == 1
    right = (predicted & there).sum(0)
    classes = there.any(0)
    precision = right / np.maximum(predicted.sum(0), 1)
    recall = right / np.maximum(there.sum(0), 1)
    values = {
        "map": _mean([ap["exact"] for ap in each]),
        "map_voc": _mean([ap["voc"] for ap in each]),
        "map_voc07": _mean([ap["voc07"] for ap in each]),
        "cp": _mean(precision[classes]),
        "cr": _mean(recall[classes]),
        "op": right.sum() / max(predicted.sum(), 1),
        "or": right.sum() / max(there.sum(), 1),
    }
    for kind in "co":
        p, r = values[f"{kind}p"], values[f"{kind}r"]
        values[f"{kind}f1"] = 2 * p * r / (p + r) if p + r else 0.0
    values = {key: 100 * float(value) for key, value in values.items()}
    return values | {"per_class": [100 * ap["exact"] for ap in each]}


def _mean(values: Any) -> float:
    """The mean of what is not NaN; NaN if all is."""
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
