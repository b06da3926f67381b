"""The task of a dataset: the loss of an image, and how an evaluation is summarised."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax

from noah_jax.errors import InputError
from noah_jax.tasks.multi_label import MultiLabel, make_loss
from noah_jax.tasks.single_label import SingleLabel


class Task(Protocol):
    """The loss of an image, and how an evaluation is accumulated and summarised."""

    @property
    def label_shape(self) -> tuple[int, ...]:
        """The shape of one image's label."""

    @property
    def accuracy_words(self) -> str:
        """What the mean of `top1` is, in a log line."""

    def per_image(
        self, logits: jax.Array, labels: jax.Array, targets: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """Computes at least `loss` and `top1` of each image, float32 `[batch]`.

        Args:
          logits: float32 `[batch, num_classes]`.
          labels: int32 `[batch, *label_shape]`.
          targets: Smoothed or mixed labels for the loss, float32 `[batch, num_classes]`;
            `None` takes `labels`.
        """

    def empty(self) -> Any:
        """Returns the arrays that an evaluation starts with."""

    def update(
        self, accumulated: Any, logits: jax.Array, labels: jax.Array, mask: jax.Array
    ) -> Any:
        """Adds a batch to an evaluation.

        Args:
          accumulated: The arrays of the evaluation so far.
          logits: float32 `[batch, num_classes]`.
          labels: int32 `[batch, *label_shape]`.
          mask: bool `[batch]`; rows where it is false do not count.
        """

    def summarise(self, accumulated: Any) -> dict[str, float]:
        """Returns an evaluation's metrics in percent, mean `loss` and number of `examples`."""


def describe(values: Mapping[str, float], num_classes: int | None = None) -> str:
    """Describes the main metrics of an evaluation in words, for either task.

    Args:
      values: The metrics.
      num_classes: Number of classes, if it is known; the top-5 accuracy of five classes or fewer
        is always 100 % and is left out.
    """
    if "map" in values:
        return f"mAP {values['map']:.2f} %, CF1 {values['cf1']:.2f} %, OF1 {values['of1']:.2f} %"
    top5 = "" if not has_top5(num_classes) else f", top-5 {values['top5']:.2f} %"
    return f"top-1 {values['top1']:.2f} %{top5}"


def has_top5(num_classes: int | None) -> bool:
    """Whether the top-5 accuracy can be below 100 %; `None` is an unknown number of classes."""
    return num_classes is None or num_classes > 5


def make_task(
    *,
    dataset: str,
    multi_label: bool,
    num_classes: int,
    capacity: int,
    loss: str,
    asymmetric: Mapping[str, float],
    smoothing: float,
) -> Task:
    """Makes the task of a dataset.

    Args:
      dataset: The dataset's name, for messages.
      multi_label: Whether the dataset's images have any number of labels.
      num_classes: Number of classes.
      capacity: Number of rows of an evaluation: its images and the padding of its last batch.
      loss: The configuration's `loss`.
      asymmetric: The configuration's section `asymmetric`, see `multi_label.make_loss`.
      smoothing: The configuration's `smoothing`.

    Raises:
      InputError: If the loss or the smoothing does not fit the dataset; names the key.
    """
    if not multi_label:
        if loss != "softmax":
            raise InputError(
                f"loss={loss} is for images with several labels, and {dataset} has one for each:"
                " set loss=softmax"
            )
        return SingleLabel()
    if loss == "softmax":
        raise InputError(
            f"loss=softmax is for images of one class, and those of {dataset} have several"
            " labels: set loss=sigmoid or loss=asymmetric"
        )
    if smoothing:
        raise InputError(f"smoothing={smoothing} does not go with loss={loss}")
    return MultiLabel(num_classes, make_loss(loss, asymmetric), capacity)
