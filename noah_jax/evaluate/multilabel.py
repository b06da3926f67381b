"""One trained model over one dataset whose images have several labels."""

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np

from noah_jax.inference.runner import Compute
from noah_jax.inference.trained import TrainedModel
from noah_jax.tasks.multi_label import MultiLabel, make_loss, measure


@dataclasses.dataclass(frozen=True)
class MultiLabelEvaluation:
    """What a model makes of every image that could be decoded.

    Attributes:
      index: int `[images]`, which image of the dataset.
      labels: 1, 0 or -1 (ignored), `[images, num_classes]`.
      loss: float32 `[images]`, of the training's kind, its mean over the classes that count.
      logits: float32 `[images, num_classes]`.
    """

    index: np.ndarray
    labels: np.ndarray
    loss: np.ndarray
    logits: np.ndarray

    def summary(self) -> dict[str, float | int | None]:
        """The measures in percent and the mean loss, as the training's results have them.

        A measure is `None` where no image has any label.
        """
        values = {key: value for key, value in self._measured.items() if key != "per_class"}
        values["loss"] = float(self.loss.mean(dtype=np.float64))
        return {key: _or_none(value) for key, value in values.items()} | {
            "examples": len(self.labels)
        }

    def average_precisions(self) -> list[float | None]:
        """The exact average precision of each class in percent; `None` for one nowhere there."""
        return [_or_none(value) for value in self._measured["per_class"]]

    @functools.cached_property
    def _measured(self) -> dict[str, Any]:
        return measure(self.logits, self.labels)


def multi_label_values(trained: TrainedModel) -> Compute:
    """What a `MultiLabelEvaluation` needs of each image, by the loss of the training."""
    loss = make_loss(trained.config["loss"], trained.config["asymmetric"])
    task = MultiLabel(trained.model.num_classes, loss, capacity=0)

    def compute(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        losses = task.per_image(logits, labels)["loss"]
        return {"loss": losses, "logits": logits, "label": labels}

    return compute


def _or_none(value: float) -> float | None:
    # JSON has no NaN.
    return value if math.isfinite(value) else None
