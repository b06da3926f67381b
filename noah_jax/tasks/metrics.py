"""What is measured, as clu collections: (sum, count) pairs, exact under masks and sharding."""

import dataclasses

import flax
import jax
import jax.numpy as jnp
import optax
from clu import metrics


@flax.struct.dataclass
class TrainMetrics(metrics.Collection):
    """Averages over the images since the last log line, and the last learning rate.

    A mixed image is correct where its own label comes first, whatever its share.
    """

    loss: metrics.Average.from_output("loss")
    accuracy: metrics.Average.from_output("top1")
    learning_rate: metrics.LastValue.from_output("learning_rate")


@flax.struct.dataclass
class EvalMetrics(metrics.Collection):
    """Averages over the images of an evaluation that are not filling."""

    loss: metrics.Average.from_output("loss")
    top1: metrics.Average.from_output("top1")
    top5: metrics.Average.from_output("top5")


def per_image(
    logits: jax.Array, labels: jax.Array, targets: jax.Array | None = None
) -> dict[str, jax.Array]:
    """Cross entropy, and whether the label is the first, or among the five first.

    Args:
      logits: float32 `[batch, num_classes]`.
      labels: int32 `[batch]`.
      targets: float32 `[batch, num_classes]`, smoothed or mixed, for the loss alone; `None`
        for the labels themselves.

    Returns:
      `loss`, `top1`, `top5`, each float32 `[batch]`. With fewer than five classes top5 is 1.
    """
    num_classes = logits.shape[-1]
    if targets is None:
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    else:
        loss = optax.softmax_cross_entropy(logits, targets)
    # The label's rank; ties go against it, so that constant logits are not all correct.
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    rank = (logits >= own).sum(-1) - 1
    # A label whose logit is NaN compares false everywhere: wrong, not first.
    rank = jnp.where(jnp.isnan(own[:, 0]), num_classes, rank)
    top5 = rank < min(5, num_classes)
    return {
        "loss": loss,
        "top1": (rank < 1).astype(jnp.float32),
        "top5": top5.astype(jnp.float32),
    }


def as_floats(collection: metrics.Collection) -> dict[str, float]:
    """A collection's values on the host, divided in float64; waits for them."""
    pairs = {
        field.name: (value.total, value.count)
        for field in dataclasses.fields(collection)
        if hasattr(value := getattr(collection, field.name), "total")
    }
    return {k: float(total) / float(count) for k, (total, count) in jax.device_get(pairs).items()}
