"""Images with any number of labels, listed in CSV files."""

import csv
import io
import os
from collections.abc import Sequence

import numpy as np
from etils import epath

from noah_jax.data.source import ImageFiles
from noah_jax.errors import InputError
from noah_jax.files import read_text
from noah_jax.paths import expand_home

_HEADER = ["image", "labels"]


class CsvSource(ImageFiles):
    """The images of one split that are listed in a CSV file.

    The file has two columns under the header `image,labels`: the path, absolute or relative to
    the file's folder, and the labels, separated by `;`. A label that starts with `-` is ignored
    for this image: it counts as neither present nor absent.

    Args:
      file: The CSV file, local or `gs://`.
      class_names: Names of the classes, in the order of their indices; by default the sorted
        labels of the file.

    Raises:
      InputError: If the header differs, a row has other columns, there are no rows, or a label
        is not among `class_names`.
    """

    multi_label = True

    def __init__(self, file: epath.Path, class_names: Sequence[str] | None = None):
        self.name = os.fspath(file)
        rows = _read_rows(file)
        labels_in_file = sorted({label.removeprefix("-") for _, labels in rows for label in labels})
        self.class_names = list(class_names or labels_in_file)
        if unknown := sorted(set(labels_in_file) - set(self.class_names)):
            raise InputError(f"{file} has labels unknown to the training: {', '.join(unknown[:5])}")
        class_indices = {name: index for index, name in enumerate(self.class_names)}
        self.files = []
        for path, labels in rows:
            values = np.zeros(len(class_indices), np.int8)
            for label in labels:
                values[class_indices[label.removeprefix("-")]] = -1 if label.startswith("-") else 1
            self.files.append((path, values))


def _read_rows(file: epath.Path) -> list[tuple[str, list[str]]]:
    """Returns path and labels of each image, labels with their `-`."""
    try:
        rows = list(csv.reader(io.StringIO(read_text(file, any_bytes=True), newline="")))
    except csv.Error as error:
        raise InputError(f"{file} is not a CSV file: {error}") from error
    if not rows or [cell.strip() for cell in rows[0]] != _HEADER:
        raise InputError(
            f"{file} must start with the header image,labels; it starts with"
            f" {','.join(rows[0]) if rows else 'nothing'}"
        )
    images = []
    for number, row in enumerate(rows[1:], 2):
        if len(row) != 2:
            raise InputError(
                f"{file}, line {number}: must be a path and labels separated by ;, got"
                f" {len(row)} column(s)"
            )
        labels = [label.strip() for label in row[1].split(";") if label.strip()]
        images.append((os.fspath(file.parent / expand_home(row[0].strip())), labels))
    if not images:
        raise InputError(f"{file} lists no images")
    return images
