"""Images with one label each: softmax cross entropy, top-1 and top-5 accuracy."""

import flax
import jax
import jax.numpy as jnp
import optax
from clu import metrics

from noah_jax.tasks.metrics import as_floats


# In a clu collection the annotation is a call that makes a type, which mypy does not accept.
@flax.struct.dataclass
class EvalMetrics(metrics.Collection):
    """Averages over the images of an evaluation; padding does not count."""

    loss: metrics.Average.from_output("loss")  # type: ignore[valid-type]
    top1: metrics.Average.from_output("top1")  # type: ignore[valid-type]
    top5: metrics.Average.from_output("top5")  # type: ignore[valid-type]


class SingleLabel:
    """The task of images with one label each, see `noah_jax.tasks.task.Task`."""

    label_shape: tuple[int, ...] = ()
    accuracy_words = "accuracy"

    def per_image(
        self, logits: jax.Array, labels: jax.Array, targets: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        return per_image(logits, labels, targets)

    def empty(self) -> EvalMetrics:
        return EvalMetrics.empty()

    def update(
        self, accumulated: EvalMetrics, logits: jax.Array, labels: jax.Array, mask: jax.Array
    ) -> EvalMetrics:
        values = per_image(logits, labels)
        return accumulated.merge(EvalMetrics.single_from_model_output(**values, mask=mask))

    def summarise(self, accumulated: EvalMetrics) -> dict[str, float]:
        values = as_floats(accumulated)
        return {
            "top1": 100 * values["top1"],
            "top5": 100 * values["top5"],
            "loss": values["loss"],
            "examples": int(jax.device_get(accumulated.top1.count)),
        }


def per_image(
    logits: jax.Array, labels: jax.Array, targets: jax.Array | None = None
) -> dict[str, jax.Array]:
    """Computes the cross entropy of each image, and whether its label ranks first or in the top 5.

    Args:
      logits: float32 `[batch, num_classes]`.
      labels: Class indices, int32 `[batch]`.
      targets: Smoothed or mixed labels for the loss, float32 `[batch, num_classes]`; `None`
        takes `labels`.

    Returns:
      `loss`, `top1` and `top5`, each float32 `[batch]`. With fewer than five classes `top5` is
      1. Ties count against the label, so that constant logits are not all correct. A label
      whose logit is NaN is wrong.
    """
    num_classes = logits.shape[-1]
    if targets is None:
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    else:
        loss = optax.softmax_cross_entropy(logits, targets)
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    rank = (logits >= own).sum(-1) - 1
    # Comparisons with NaN are false, which would give the first rank.
    rank = jnp.where(jnp.isnan(own[:, 0]), num_classes, rank)
    top5 = rank < min(5, num_classes)
    return {
        "loss": loss,
        "top1": (rank < 1).astype(jnp.float32),
        "top5": top5.astype(jnp.float32),
    }
