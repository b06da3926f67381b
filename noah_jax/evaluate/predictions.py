"""Writes and reads the predictions of a model, a CSV line for each image."""

import csv
import dataclasses
import io
from typing import Any

import numpy as np

from noah_jax.errors import InputError, ReadError, printable
from noah_jax.evaluation.dataset import EvaluationImages
from noah_jax.evaluation.results import SingleLabelResults
from noah_jax.files import read_text, write_text

SUFFIX = ".csv"
_COLUMNS = ["file", "label", "predicted", "probability"]


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model predicts for some images, in their order.

    Attributes:
      name: What the user named: the checkpoint, or the file of predictions.
      files: Name of each image, see `EvaluationImages.image_name`.
      labels: Name of each image's class.
      predicted: Name of the class with the highest logit; empty where a logit is not a number.
      probability: Its probability.
    """

    name: str
    files: list[str]
    labels: list[str]
    predicted: list[str]
    probability: list[float]

    def right(self) -> np.ndarray:
        """Returns whether each image is predicted right, bool `[images]`."""
        return np.array(
            [label == guess for label, guess in zip(self.labels, self.predicted, strict=True)]
        )


def predictions_of(name: str, images: EvaluationImages, results: SingleLabelResults) -> Predictions:
    """Collects the predictions of an evaluation.

    An image counts as wrong, as in its accuracy, if another class has the same highest logit.
    """
    names = images.class_names
    predicted = []
    for ranked, label, right in zip(
        results.ranked.tolist(), results.labels.tolist(), results.top1.tolist(), strict=True
    ):
        guess = ranked[0]
        if guess == label and not right:  # a tie
            guess = ranked[1]
        predicted.append("" if guess < 0 else names[guess])
    return Predictions(
        name,
        [printable(images.image_name(index)) for index in results.index.tolist()],
        [names[label] for label in results.labels.tolist()],
        predicted,
        results.probability.tolist(),
    )


def write_predictions(path: str, predictions: Predictions) -> None:
    """Writes predictions as CSV with the columns file, label, predicted and probability.

    Raises:
      WriteError: If the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    rows: Any = zip(
        predictions.files,
        predictions.labels,
        predictions.predicted,
        (f"{value:.7g}" for value in predictions.probability),
        strict=True,
    )
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_predictions(path: str) -> Predictions:
    """Reads what `write_predictions` wrote.

    Raises:
      ReadError: If the file cannot be read or holds something else.
    """
    try:
        header, *rows = list(csv.reader(io.StringIO(read_text(path), newline=""))) or [[]]
    except csv.Error as error:
        raise ReadError(f"{path} is not a CSV file: {error}") from error
    if header != _COLUMNS or not rows:
        raise ReadError(
            f"{path} does not hold predictions: it must begin with {','.join(_COLUMNS)} and have a"
            " line for each image; write it with --predictions"
        )
    for number, row in enumerate(rows, start=2):
        if len(row) != len(_COLUMNS) or not _is_number(row[-1]):
            raise ReadError(f"{path}, line {number}, holds no prediction: {','.join(row)!r}")
    files, labels, predicted, probability = (list(column) for column in zip(*rows, strict=True))
    return Predictions(path, files, labels, predicted, list(map(float, probability)))


def check_same_images(a: Predictions, b: Predictions) -> None:
    """Checks that two models were evaluated on the same images in the same order.

    Raises:
      InputError: If they were not, or an image has another label.
    """
    if len(a.files) != len(b.files):
        raise InputError(
            f"{a.name} was evaluated on {len(a.files):,} images and {b.name} on {len(b.files):,};"
            " a paired test needs the same images: give both one --dataset"
        )
    for what, values_a, values_b in (("image", a.files, b.files), ("label", a.labels, b.labels)):
        for file, x, y in zip(a.files, values_a, values_b, strict=True):
            if x != y:
                where = "" if what == "image" else f" of {file}"
                raise InputError(
                    f"{a.name} has the {what} {x}{where} where {b.name} has {y}; a paired test"
                    " needs the same images and labels in the same order"
                )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
