"""Classifies by the nearest neighbours, as DINO does (Caron et al., 2021, `eval_knn.py`).

An image's neighbours are the training images whose features have the largest cosine similarity s
with its own. Each votes for its label with the weight exp(s / T).
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from noah_jax.console import working
from noah_jax.probe.training import Data

_TRAINING_ROWS = 2**15  # training images whose features are on the device at a time
_ROWS = 1024  # images whose neighbours are looked for at a time


def classify(
    training: Data,
    evaluation: Data,
    neighbours: Sequence[int],
    *,
    temperature: float,
    num_classes: int,
    training_rows: int = _TRAINING_ROWS,
    rows: int = _ROWS,
) -> dict[int, np.ndarray]:
    """Predicts the classes of images by their neighbours.

    Args:
      training: Features `[images, channels]` and labels of the training images.
      evaluation: Those of the images to classify.
      neighbours: Numbers of neighbours, each at most the number of training images.
      temperature: The temperature T.
      num_classes: Number of classes.
      training_rows: Training images whose features are on the device at a time.
      rows: Images that are classified at a time.

    Returns:
      The predicted classes, int `[images]`, for each number of neighbours. Equal votes give the
      first class; equally near neighbours come in the order of the training images.
    """
    most = max(neighbours)
    queries = [
        _features(evaluation, start, start + rows) for start in range(0, len(evaluation), rows)
    ]
    best = [_none(len(query)) for query in queries]
    step = jax.jit(functools.partial(_nearer, most=most))
    with working("looking for neighbours", len(training)) as work:
        for start in range(0, len(training), training_rows):
            block = _features(training, start, start + training_rows)
            labels = jnp.asarray(training.labels[start : start + training_rows])
            for i, query in enumerate(queries):
                best[i] = step(best[i], query, block, labels)
            work.advance(len(labels))
    votes = jax.jit(functools.partial(_votes, num_classes=num_classes), static_argnames="k")
    return {
        k: np.concatenate(
            [np.asarray(votes(s, labels, temperature, k=k).argmax(-1)) for s, labels in best]
        )
        for k in neighbours
    }


def _features(data: Data, start: int, end: int) -> jax.Array:
    """Returns features of rows, normalised to the length 1 in float32."""
    features = jnp.asarray(data.features[data.rows[start:end]]).astype(jnp.float32)
    norm = jnp.linalg.norm(features, axis=-1, keepdims=True)
    return features / jnp.maximum(norm, 1e-12)  # as torch.nn.functional.normalize


def _none(images: int) -> tuple[jax.Array, jax.Array]:
    return jnp.zeros((images, 0), jnp.float32), jnp.zeros((images, 0), jnp.int32)


def _nearer(
    best: tuple[jax.Array, jax.Array],
    queries: jax.Array,
    block: jax.Array,
    labels: jax.Array,
    *,
    most: int,
) -> tuple[jax.Array, jax.Array]:
    """The similarities and labels of the nearest so far and in a block, `[images, <= most]`."""
    similar = jnp.einsum("qc,tc->qt", queries, block, precision=jax.lax.Precision.HIGHEST)
    similar = jnp.concatenate([best[0], similar], -1)
    known = jnp.concatenate([best[1], jnp.broadcast_to(labels, (len(queries), len(labels)))], -1)
    similar, places = jax.lax.top_k(similar, min(most, similar.shape[-1]))
    return similar, jnp.take_along_axis(known, places, -1)


def _votes(
    similar: jax.Array, labels: jax.Array, temperature: float, *, k: int, num_classes: int
) -> jax.Array:
    """Votes for each class `[images, num_classes]`."""
    # The largest weight of an image becomes 1: the votes' order is the same, without overflow.
    weights = jnp.exp((similar[:, :k] - similar[:, :1]) / temperature)
    images = jnp.arange(len(labels))[:, None]
    return jnp.zeros((len(labels), num_classes)).at[images, labels[:, :k]].add(weights)
