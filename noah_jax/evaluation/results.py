"""What an evaluation measures for each image, and its summary over all images."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from noah_jax.errors import InputError
from noah_jax.tasks.multi_label import measure

# The measures of one model in plain values, as JSON and the table have them.
Summary = dict[str, float | int | None]


@dataclasses.dataclass(frozen=True)
class SingleLabelResults:
    """The results of a model on images with one label each, for all that could be decoded.

    Attributes:
      index: int `[images]`, the position of each image in the dataset.
      labels: int `[images]`, class indices.
      loss: float32 `[images]`, cross entropy.
      top1: bool `[images]`, whether the label has the highest logit. Ties count as wrong, as in
        training.
      top5: bool `[images]`, whether the label is among the five highest logits.
      ranked: int `[images, 5]`, the classes with the highest logits, best first; fewer columns if
        there are fewer classes. -1 where a logit is NaN.
      probability: float32 `[images]`, the probability of the predicted class.
      num_classes: Number of the model's classes.
      classes: The classes that could be predicted; `None` if all could. All values above are among
        these classes.
      top1_of_all: bool `[images]`, `top1` among all classes; `None` if `classes` is.
      top5_of_all: bool `[images]`, likewise.
      logits: float32 `[images, classes]`, if they were kept; the columns are `classes`.
    """

    index: np.ndarray
    labels: np.ndarray
    loss: np.ndarray
    top1: np.ndarray
    top5: np.ndarray
    ranked: np.ndarray
    probability: np.ndarray
    num_classes: int
    classes: tuple[int, ...] | None = None
    top1_of_all: np.ndarray | None = None
    top5_of_all: np.ndarray | None = None
    logits: np.ndarray | None = None

    def summary(self) -> Summary:
        """Returns percentages and the mean loss over all images, as a training's results do.

        The loss is `None` if it is not finite, because JSON has no NaN. Where only some classes
        could be predicted, `classes` says how many, and `top1_of_all` and `top5_of_all` are what
        all would give.
        """
        values: Summary = {
            "top1": 100 * float(self.top1.mean()),
            "top5": 100 * float(self.top5.mean()),
            "loss": _or_none(float(self.loss.mean(dtype=np.float64))),
            "examples": len(self.labels),
        }
        if self.classes is not None:
            assert self.top1_of_all is not None and self.top5_of_all is not None
            values["classes"] = len(self.classes)
            values["top1_of_all"] = 100 * float(self.top1_of_all.mean())
            values["top5_of_all"] = 100 * float(self.top5_of_all.mean())
        return values

    def confusion(self) -> np.ndarray:
        """Counts the images by label (row) and predicted class (column).

        Returns:
          int `[num_classes, num_classes]`.
        """
        counts = np.zeros((self.num_classes, self.num_classes), int)
        known = self.ranked[:, 0] >= 0
        np.add.at(counts, (self.labels[known], self.ranked[known, 0]), 1)
        return counts

    def real(self, label_sets: Sequence[Sequence[int]]) -> Summary:
        """Computes the top-1 where several labels may be right; images with none are left out.

        Args:
          label_sets: The correct labels of every image of the dataset.

        Raises:
          InputError: If no image has a correct label.
        """
        hits = [
            predicted in label_sets[i]
            for i, predicted in zip(self.index.tolist(), self.ranked[:, 0].tolist(), strict=True)
            if label_sets[i]
        ]
        if not hits:
            raise InputError("none of the images has a correct label")
        return {"real_top1": 100 * float(np.mean(hits)), "real_examples": len(hits)}


@dataclasses.dataclass(frozen=True)
class MultiLabelResults:
    """The results of a model on images with several labels, for all that could be decoded.

    Attributes:
      index: int `[images]`, the position of each image in the dataset.
      labels: 1 (present), 0 (absent) or -1 (ignored), `[images, num_classes]`.
      loss: float32 `[images]`, the training's loss, its mean over the classes that count.
      logits: float32 `[images, num_classes]`.
    """

    index: np.ndarray
    labels: np.ndarray
    loss: np.ndarray
    logits: np.ndarray

    def summary(self) -> Summary:
        """Returns the measures in percent and the mean loss, as a training's results do.

        A measure is `None` if it is not defined, because no image has a label.
        """
        values = {key: value for key, value in self._measures.items() if key != "per_class"}
        values["loss"] = float(self.loss.mean(dtype=np.float64))
        return {key: _or_none(value) for key, value in values.items()} | {
            "examples": len(self.labels)
        }

    def average_precisions(self) -> list[float | None]:
        """Returns the exact average precision of each class in percent.

        It is `None` for a class that no image has.
        """
        return [_or_none(value) for value in self._measures["per_class"]]

    @functools.cached_property
    def _measures(self) -> dict[str, Any]:
        return measure(self.logits, self.labels)


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
