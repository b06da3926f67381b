"""One trained model over one dataset, image by image."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.decoding import DecodedSource
from noah_jax.errors import InputError
from noah_jax.evaluate.multilabel import MultiLabelEvaluation, multi_label_values
from noah_jax.inference.runner import Inference
from noah_jax.inference.trained import TrainedModel
from noah_jax.tasks.single_label import per_image


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a model makes of every image that could be decoded, of one label each.

    Attributes:
      index: int `[images]`, which image of the dataset.
      labels: int `[images]`.
      loss: float32 `[images]`, cross entropy.
      top1: bool `[images]`, whether the label is first; as in training, ties are against it.
      top5: bool `[images]`, whether it is among the five first.
      ranked: int `[images, 5]`, the classes with the highest logits, best first (of fewer
        classes all); -1 where a logit is no number.
      num_classes: how many there are.
    """

    index: np.ndarray
    labels: np.ndarray
    loss: np.ndarray
    top1: np.ndarray
    top5: np.ndarray
    ranked: np.ndarray
    num_classes: int

    def summary(self) -> dict[str, float | int | None]:
        """Percentages and the mean loss over all images, as the training's results have them.

        The loss is `None` where it is not finite, which JSON could not say.
        """
        loss = float(self.loss.mean(dtype=np.float64))
        return {
            "top1": 100 * float(self.top1.mean()),
            "top5": 100 * float(self.top5.mean()),
            "loss": loss if math.isfinite(loss) else None,
            "examples": len(self.labels),
        }

    def confusion(self) -> np.ndarray:
        """int `[num_classes, num_classes]`: images by label (row) and first class (column)."""
        counts = np.zeros((self.num_classes, self.num_classes), int)
        known = self.ranked[:, 0] >= 0
        np.add.at(counts, (self.labels[known], self.ranked[known, 0]), 1)
        return counts

    def real(self, sets: Sequence[Sequence[int]]) -> dict[str, float | int]:
        """Top-1 where several labels may be right; images with none are left out.

        Args:
          sets: the right labels of every image of the dataset.

        Raises:
          ValueError: if no image has any.
        """
        hits = [
            first in sets[i]
            for i, first in zip(self.index.tolist(), self.ranked[:, 0].tolist(), strict=True)
            if sets[i]
        ]
        if not hits:
            raise InputError("none of the images has a label that is right")
        return {"real_top1": 100 * float(np.mean(hits)), "real_examples": len(hits)}


def make_inference(trained: TrainedModel, batch_size: int) -> Inference:
    """What `evaluate` needs, for the weights of one model and others of its kind."""
    compute = multi_label_values(trained) if trained.multi_label else _per_image
    return Inference(trained.model, trained.preprocessing, compute, batch_size=batch_size)


def _per_image(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    _, ranked = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    finite = ~jnp.isnan(logits).any(-1, keepdims=True)
    return {**per_image(logits, labels), "label": labels, "ranked": jnp.where(finite, ranked, -1)}


def evaluate(
    inference: Inference,
    trained: TrainedModel,
    source: DecodedSource,
    *,
    corrupt_images: CorruptImages,
    num_threads: int | None = None,
) -> Evaluation | MultiLabelEvaluation:
    """Every image of the source, once.

    Args:
      inference: of `make_inference`.
      trained: the weights.
      source: the images.
      corrupt_images: what to do about those that cannot be decoded.
      num_threads: that decode; `None` is one for every core.

    Raises:
      ValueError: if no image can be decoded, a label is none of the model's classes, or, with
        several labels, a logit is not finite: there would be no order of the images.
    """
    indices, parts = [], []
    # Quiet where stderr is no terminal.
    with tqdm(total=len(source), unit=" images", disable=None, leave=False) as bar:
        for index, values in inference.run(
            trained, source, corrupt_images=corrupt_images, num_threads=num_threads
        ):
            indices.append(index)
            parts.append(values)
            bar.update(len(index))
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    index = np.concatenate(indices)
    labels, num_classes = joined["label"], trained.model.num_classes
    if not len(labels):
        raise InputError("none of the images can be decoded")
    if trained.multi_label:
        if not np.isfinite(joined["logits"]).all():
            raise InputError(f"the logits of {trained.path} are not finite")
        return MultiLabelEvaluation(index, labels, joined["loss"], joined["logits"])
    if labels.max() >= num_classes:
        raise InputError(
            f"the dataset has the label {labels.max()}, {trained.path} {num_classes} classes"
        )
    return Evaluation(
        index=index,
        labels=labels,
        loss=joined["loss"],
        top1=joined["top1"] > 0,
        top5=joined["top5"] > 0,
        ranked=joined["ranked"],
        num_classes=num_classes,
    )
