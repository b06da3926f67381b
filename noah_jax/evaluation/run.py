"""Evaluates one trained model on one dataset, image by image."""

from collections.abc import Sequence

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


def make_inference(
    trained: TrainedModel,
    batch_size: int,
    *,
    classes: Sequence[int] | None = None,
    keep_logits: bool = False,
) -> Inference:
    """Makes the compiled program for `evaluate`, which models of the same kind can share.

    Args:
      trained: The model.
      batch_size: Images at a time.
      classes: The classes that can be predicted, for images with one label; `None` for all.
      keep_logits: Keep the logits of these classes, for images with one label.
    """
    compute = (
        _multi_label_values(trained)
        if trained.multi_label
        else _single_label_values(trained.model.num_classes, classes, keep_logits)
    )
    return Inference(trained.model, trained.preprocessing, compute, batch_size=batch_size)


def _single_label_values(
    num_classes: int, classes: Sequence[int] | None, keep_logits: bool
) -> Compute:
    most = min(5, num_classes if classes is None else len(classes))
    allowed = np.zeros(num_classes, bool)
    allowed[slice(None) if classes is None else list(classes)] = True

    def compute(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        values = {"label": labels}
        if classes is not None:
            all_classes = per_image(logits, labels)
            values |= {f"{key}_of_all": all_classes[key] for key in ("top1", "top5")}
            if keep_logits:
                values["logits"] = logits[:, np.asarray(classes)]
            logits = jnp.where(allowed, logits, -jnp.inf)
        elif keep_logits:
            values["logits"] = logits
        _, ranked = jax.lax.top_k(logits, most)
        no_nan = ~jnp.isnan(logits).any(-1, keepdims=True)
        return {
            **values,
            **per_image(logits, labels),
            "ranked": jnp.where(no_nan, ranked, -1),
            "probability": jax.nn.softmax(logits).max(-1),
        }

    return compute


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
    classes: Sequence[int] | None = None,
    doing: str = "",
) -> SingleLabelResults | MultiLabelResults:
    """Evaluates a model on every image of a source, once.

    Logits that are kept take 4 bytes for each image and class, 200 MB for the 50,000 images and
    1,000 classes of ImageNet; all else is a few numbers an image.

    Args:
      inference: The program that `make_inference` makes.
      trained: The model.
      source: The images.
      corrupt_images: Records the images that cannot be decoded or have no label; they are left
        out.
      num_threads: Threads that decode; `None` is one for every core.
      classes: What `make_inference` was given.
      doing: What the terminal says meanwhile; by default that the model is evaluated.

    Raises:
      InputError: If no image has a label and can be decoded, or a label is none of the model's
        classes. With several labels also if a logit is not finite, because the images then have
        no order.
    """
    indices, parts = [], []
    logits: np.ndarray | None = None
    done = 0
    with working(doing or f"evaluating {trained.path}", len(source)) as work:
        for index, values in inference.run(
            trained, source, corrupt_images=corrupt_images, num_threads=num_threads
        ):
            # Joining them at the end would take twice the memory.
            if (rows := values.pop("logits", None)) is not None:
                if logits is None:
                    logits = np.empty((len(source), rows.shape[1]), rows.dtype)
                logits[done : done + len(index)] = rows
            done += len(index)
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
        assert logits is not None
        logits = logits[:done]
        if not np.isfinite(logits).all():
            raise InputError(f"the logits of {trained.path} are not finite")
        return MultiLabelResults(index, labels, joined["loss"], logits)
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
        probability=joined["probability"],
        num_classes=num_classes,
        classes=None if classes is None else tuple(classes),
        top1_of_all=None if classes is None else joined["top1_of_all"] > 0,
        top5_of_all=None if classes is None else joined["top5_of_all"] > 0,
        logits=None if logits is None else logits[:done],
    )
