"""What images are labelled with, one class or any number: the loss and the evaluation of it."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import flax
import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics
from ml_collections import ConfigDict

from noah_jax.errors import InputError
from noah_jax.tasks.metrics import EvalMetrics, as_floats, per_image
from noah_jax.tasks.multi_label import make_loss, measure


class Task(Protocol):
    """The loss of an image, and how an evaluation is gathered and summarised.

    Attributes:
      label_shape: of one image's label.
    """

    label_shape: tuple[int, ...]

    def per_image(
        self, logits: jax.Array, labels: jax.Array, targets: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """`loss` and `top1` of each image, float32 `[batch]`, among others."""

    def empty(self) -> Any:
        """What an evaluation starts with."""

    def update(self, gathered: Any, logits: jax.Array, labels: jax.Array, mask: jax.Array) -> Any:
        """What it has after another batch; images whose mask is false do not count."""

    def summarise(self, gathered: Any) -> dict[str, float]:
        """The measures in percent, the mean loss, and the number of `examples`."""


class SingleLabel:
    """Images of one class each: softmax cross entropy, top-1 and top-5 accuracy."""

    label_shape = ()
    per_image = staticmethod(per_image)
    empty = staticmethod(EvalMetrics.empty)

    def update(
        self, gathered: EvalMetrics, logits: jax.Array, labels: jax.Array, mask: jax.Array
    ) -> EvalMetrics:
        values = per_image(logits, labels)
        return gathered.merge(EvalMetrics.single_from_model_output(**values, mask=mask))

    def summarise(self, gathered: EvalMetrics) -> dict[str, float]:
        values = as_floats(gathered)
        return {
            "top1": 100 * values["top1"],
            "top5": 100 * values["top5"],
            "loss": values["loss"],
            "examples": int(jax.device_get(gathered.top1.count)),
        }


@flax.struct.dataclass
class Gathered:
    """Every image's logits and labels, by its place in the evaluation.

    Attributes:
      loss: over the images so far.
      logits: float32 `[places, num_classes]`.
      labels: int32 `[places, num_classes]`.
      mask: bool `[places]`; whether there is an image.
      filled: int32, the places so far.
    """

    loss: clu_metrics.Average
    logits: jax.Array
    labels: jax.Array
    mask: jax.Array
    filled: jax.Array


@dataclasses.dataclass(frozen=True)
class MultiLabel:
    """Images with any number of labels, see `noah_jax.tasks.multi_label`.

    An image's loss is the mean over the classes that count; it is `top1` if its first class is
    one of its own.

    Attributes:
      num_classes: number of classes.
      loss: `f(logits, targets)` of each class.
      places: images of an evaluation, its filling among them.
    """

    num_classes: int
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    places: int

    @property
    def label_shape(self) -> tuple[int, ...]:
        return (self.num_classes,)

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

    def empty(self) -> Gathered:
        shape = (self.places, self.num_classes)
        return Gathered(
            loss=clu_metrics.Average.empty(),
            logits=jnp.zeros(shape, jnp.float32),
            labels=jnp.zeros(shape, jnp.int32),
            mask=jnp.zeros(self.places, bool),
            filled=jnp.zeros((), jnp.int32),
        )

    def update(
        self, gathered: Gathered, logits: jax.Array, labels: jax.Array, mask: jax.Array
    ) -> Gathered:
        def put(whole, part):
            return jax.lax.dynamic_update_slice_in_dim(whole, part, gathered.filled, axis=0)

        loss = self.per_image(logits, labels)["loss"]
        return Gathered(
            loss=gathered.loss.merge(clu_metrics.Average.from_model_output(loss, mask=mask)),
            logits=put(gathered.logits, logits.astype(jnp.float32)),
            labels=put(gathered.labels, labels),
            mask=put(gathered.mask, mask),
            filled=gathered.filled + len(logits),
        )

    def summarise(self, gathered: Gathered) -> dict[str, float]:
        logits, labels, mask = jax.device_get((gathered.logits, gathered.labels, gathered.mask))
        values = measure(logits[mask], labels[mask])
        del values["per_class"]
        loss = jax.device_get(gathered.loss)
        return {
            **values,
            "loss": float(loss.total) / float(loss.count),
            "examples": int(mask.sum()),
        }


def describe(values: dict[str, Any]) -> str:
    """The main measures in words, of either task."""
    if "map" in values:
        return f"mAP {values['map']:.2f} %, CF1 {values['cf1']:.2f} %, OF1 {values['of1']:.2f} %"
    return f"top-1 {values['top1']:.2f} %, top-5 {values['top5']:.2f} %"


def make_task(config: ConfigDict, *, multi_label: bool, num_classes: int, places: int) -> Task:
    """The task of a configuration on a set.

    Args:
      config: its `loss`, `asymmetric`, `smoothing`.
      multi_label: whether the set's images have any number of labels.
      num_classes: number of classes.
      places: images of an evaluation, its filling among them.

    Raises:
      ValueError: if the loss does not fit the set; names the key.
    """
    if not multi_label:
        if config.loss != "softmax":
            raise InputError(
                f"loss={config.loss} is for images with several labels, and {config.dataset} has"
                " one for each: set loss=softmax"
            )
        return SingleLabel()
    if config.loss == "softmax":
        raise InputError(
            f"loss=softmax is for images of one class, and those of {config.dataset} have several"
            " labels: set loss=sigmoid or loss=asymmetric"
        )
    if config.smoothing:
        raise InputError(f"smoothing={config.smoothing} does not go with loss={config.loss}")
    return MultiLabel(num_classes, make_loss(config), places)
