"""Evaluates one trained model on one dataset, image by image."""

import jax
import jax.numpy as jnp
import numpy as np

from noah_jax.console import working
from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.decoding import DecodedSource
from noah_jax.errors import InputError
from noah_jax.evaluation.results import MultiLabelResults, SingleLabelResults
from noah_jax.inference.runner import Compute, Inference
from noah_jax.inference.trained import TrainedModel
from noah_jax.tasks.multi_label import MultiLabel, make_loss
from noah_jax.tasks.single_label import per_image


def make_inference(trained: TrainedModel, batch_size: int) -> Inference:
    """Makes the compiled program for `evaluate`, which models of the same kind can share."""
    compute = _multi_label_values(trained) if trained.multi_label else _single_label_values
    return Inference(trained.model, trained.preprocessing, compute, batch_size=batch_size)


def _single_label_values(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    _, ranked = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    no_nan = ~jnp.isnan(logits).any(-1, keepdims=True)
    return {**per_image(logits, labels), "label": labels, "ranked": jnp.where(no_nan, ranked, -1)}


def _multi_label_values(trained: TrainedModel) -> Compute:
    loss = make_loss(trained.config["loss"], trained.config["asymmetric"])
    task = MultiLabel(trained.model.num_classes, loss, capacity=0)

    def compute(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        losses = task.per_image(logits, labels)["loss"]
        return {"loss": losses, "logits": logits, "label": labels}

    return compute


def evaluate(
    inference: Inference,
    trained: TrainedModel,
    source: DecodedSource,
    *,
    corrupt_images: CorruptImages,
    num_threads: int | None = None,
) -> SingleLabelResults | MultiLabelResults:
    """Evaluates a model on every image of a source, once.

    Args:
      inference: The program that `make_inference` makes.
      trained: The model.
      source: The images.
      corrupt_images: Records the images that cannot be decoded or have no label; they are left
        out.
      num_threads: Threads that decode; `None` is one for every core.

    Raises:
      InputError: If no image has a label and can be decoded, or a label is none of the model's
        classes. With several labels also if a logit is not finite, because the images then have
        no order.
    """
    indices, parts = [], []
    with working(f"evaluating {trained.path}", len(source)) as work:
        for index, values in inference.run(
            trained, source, corrupt_images=corrupt_images, num_threads=num_threads
        ):
            indices.append(index)
            parts.append(values)
            work.advance(len(index))
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    index = np.concatenate(indices)
    labels, num_classes = joined["label"], trained.model.num_classes
    if not len(labels):
        raise InputError(
            f"none of the {len(source):,} images of {source.name} can be evaluated:"
            f" {corrupt_images.unlabelled:,} have no label, {len(corrupt_images):,} cannot be"
            " decoded"
        )
    if trained.multi_label:
        if not np.isfinite(joined["logits"]).all():
            raise InputError(f"the logits of {trained.path} are not finite")
        return MultiLabelResults(index, labels, joined["loss"], joined["logits"])
    if no_class := [
        label for label in (labels.min(), labels.max()) if not 0 <= label < num_classes
    ]:
        raise InputError(
            f"{source.name} has the label {no_class[0]}, and the classes of {trained.path} are 0 to"
            f" {num_classes - 1}"
        )
    return SingleLabelResults(
        index=index,
        labels=labels,
        loss=joined["loss"],
        top1=joined["top1"] > 0,
        top5=joined["top5"] > 0,
        ranked=joined["ranked"],
        num_classes=num_classes,
    )
