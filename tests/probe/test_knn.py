"""k nearest neighbours against DINO's definition in NumPy."""

import numpy as np
import pytest

from noah_jax.probe.knn import classify
from noah_jax.probe.training import Data

CLASSES = 5


def _by_definition(training, labels, queries, k, temperature):
    """`knn_classifier` in DINO's eval_knn.py, which votes with exp(similarity / T)."""
    training = training / np.linalg.norm(training, axis=1, keepdims=True)
    queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    similar = queries @ training.T
    nearest = np.argsort(-similar, axis=1, kind="stable")[:, :k]
    votes = np.zeros((len(queries), CLASSES))
    for i, row in enumerate(nearest):
        for j in row:
            votes[i, labels[j]] += np.exp(similar[i, j] / temperature)
    return votes.argmax(1)


def _data(seed: int, images: int, dtype=np.float32) -> Data:
    random = np.random.RandomState(seed)
    labels = random.randint(0, CLASSES, images).astype(np.int32)
    centres = np.random.RandomState(9).standard_normal((CLASSES, 7))
    features = (centres[labels] + 1.5 * random.standard_normal((images, 7))).astype(dtype)
    rows = np.sort(random.permutation(images)[: images - 3])  # three cannot be used
    return Data(features, rows, labels[rows])


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_it_is_the_definition(temperature):
    training, evaluation = _data(0, 103), _data(1, 53)
    neighbours = (1, 10, 20, 100)
    whole = classify(training, evaluation, neighbours, temperature=temperature, num_classes=CLASSES)
    for k in neighbours:
        expected = _by_definition(
            training.features[training.rows].astype(np.float64),
            training.labels,
            evaluation.features[evaluation.rows].astype(np.float64),
            k,
            temperature,
        )
        np.testing.assert_array_equal(whole[k], expected)
    assert 0.4 < (whole[20] == evaluation.labels).mean() < 1
    # Neither the blocks of training images nor those of queries change a prediction.
    blocks = classify(
        training,
        evaluation,
        neighbours,
        temperature=temperature,
        num_classes=CLASSES,
        training_rows=32,
        rows=16,
    )
    for k in neighbours:
        np.testing.assert_array_equal(blocks[k], whole[k])


def test_small_temperatures_do_not_overflow():
    training, evaluation = _data(0, 43, np.float16), _data(1, 13, np.float16)
    options = dict(num_classes=CLASSES)
    nearest = classify(training, evaluation, [1], temperature=1.0, **options)[1]
    cold = classify(training, evaluation, [20], temperature=1e-4, **options)[20]
    np.testing.assert_array_equal(cold, nearest)
