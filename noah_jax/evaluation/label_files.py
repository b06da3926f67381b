"""Reads labels that replace or complement a dataset's own: CSV tables and ImageNet-ReaL's JSON."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence

from noah_jax.data.image_files import FileSource
from noah_jax.data.shrunk import shrinking_of
from noah_jax.data.source import Source
from noah_jax.data.sources import data_folder
from noah_jax.errors import InputError, ReadError, did_you_mean
from noah_jax.files import read_text
from noah_jax.inference.class_words import explain_ambiguity, is_number, read_word

# The first cell of a header line, which is optional.
_HEADERS = {"file", "filename", "file_name", "image", "path"}
# Second cells of a header that say what the labels are, as `class_words` has it.
_KINDS = {"name": "name:", "class_name": "name:", "index": "index:", "class_index": "index:"}


class _RelabelledSource:
    """Some images of a source, with other labels.

    Args:
      source: The images.
      rows: For each image its index in the source and its label.
    """

    multi_label = False

    def __init__(self, source: Source, rows: Sequence[tuple[int, int]]):
        self.name = source.name
        self.class_names = source.class_names
        self.shrinking = shrinking_of(source)
        self._source = source
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> tuple[bytes, int]:
        index, label = self._rows[position]
        return self._source[index][0], label

    def describe(self, position: int) -> str:
        return self._source.describe(self._rows[position][0])

    def file_name(self, position: int) -> str:
        return self._source.file_name(self._rows[position][0])


def open_labelled_folder(dataset: str, path: str, class_names: Sequence[str]) -> Source | None:
    """Opens the images of a folder that a table names, with the table's labels.

    Args:
      dataset: Name of the dataset, see `noah_jax.data.sources.open_eval_source`.
      path: A CSV file with lines `file,label`; the files are relative to the folder.
      class_names: Names of the classes, for labels that are names.

    Returns:
      The source, or `None` if the dataset is no folder.

    Raises:
      InputError: If the table cannot be read, or files that it names are missing.
    """
    root = data_folder(dataset)
    if root is None:
        return None
    table = _read_table(path, class_names)
    files = [os.path.join(os.fspath(root), name) for name in table]
    if missing := [file for file in files if not os.path.isfile(file)]:
        raise InputError(
            f"{len(missing)} of the {len(files)} files that {path} names are missing, such as"
            f" {missing[0]}"
        )
    return FileSource(files, list(table.values()), name=os.fspath(root), class_names=class_names)


def relabel(source: Source, path: str, class_names: Sequence[str]) -> Source:
    """Selects the images of a TFDS dataset that a table names, and gives them its labels.

    Args:
      source: The images; each has a file name.
      path: A CSV file with lines `file,label`; folders in the file names do not count.
      class_names: Names of the classes, for labels that are names.

    Raises:
      InputError: If the table cannot be read, names an unknown file, or the source does not know
        its files' names.
    """
    table = _read_table(path, class_names)
    labels = {os.path.basename(name): label for name, label in table.items()}
    indices = {source.file_name(i): i for i in range(len(source))}
    if missing := sorted(set(labels) - set(indices)):
        raise InputError(f"{path} names {missing[0]}, which {source.name} does not have")
    return _RelabelledSource(source, [(indices[name], label) for name, label in labels.items()])


def read_real_labels(source: Source, path: str | None, num_classes: int) -> list[list[int]] | None:
    """Reads the correct labels of every image from ImageNet-ReaL's JSON file.

    Args:
      source: The images.
      path: The JSON file, a list with a list of labels for each image, in the order of the file
        names; or `None`.
      num_classes: Labels must be below it.

    Returns:
      The labels by index of the source; `None` without a path.

    Raises:
      InputError: If the file holds something else or another number of images.
    """
    if path is None:
        return None
    try:
        lists = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ReadError(f"{path} is not JSON: {error}") from error
    if not isinstance(lists, list) or not all(_are_labels(x, num_classes) for x in lists):
        raise InputError(
            f"{path} must be a JSON list with a list of labels in 0..{num_classes - 1} for every"
            " image"
        )
    if len(lists) != len(source):
        raise InputError(f"{path} has {len(lists)} images, {source.name} has {len(source)}")
    by_file_name = sorted(range(len(source)), key=source.file_name)
    by_index: list[list[int]] = [[] for _ in by_file_name]
    for index, labels in zip(by_file_name, lists, strict=True):
        by_index[index] = labels
    return by_index


def _are_labels(labels: object, num_classes: int) -> bool:
    # A bool is an int too, but no label.
    return isinstance(labels, list) and all(
        type(label) is int and 0 <= label < num_classes for label in labels
    )


def _read_table(path: str, class_names: Sequence[str]) -> dict[str, int]:
    """Returns the class index of each file in a CSV table."""
    labels: dict[str, str] = {}
    kind = None
    for row in _read_rows(path):
        if not labels and row and row[0].strip().lower() in _HEADERS:
            kind = _KINDS.get(row[1].strip().lower()) if len(row) == 2 else None
            continue
        if not row:
            continue
        if len(row) != 2:
            raise InputError(f"{path} must have lines `file,label`, got {','.join(row)!r}")
        name, label = (cell.strip() for cell in row)
        labels[name] = label if kind is None else kind + label
    if not labels:
        raise InputError(f"{path} holds no lines `file,label`")
    return _class_indices(path, labels, class_names)


def _class_indices(
    path: str, labels: Mapping[str, str], class_names: Sequence[str]
) -> dict[str, int]:
    """Returns the class index of each label.

    Labels that are numbers are all names or all indices: if one of them is only a name, or only an
    index, that decides for those that may be both.

    Raises:
      InputError: If a label is neither, or nothing decides.
    """
    readings = {label: read_word(label, class_names) for label in set(labels.values())}
    numbers = [reading for label, reading in readings.items() if is_number(label)]
    all_names = all(reading.names for reading in numbers)
    all_indices = all(reading.class_index is not None for reading in numbers)
    indices = {}
    for name, label in labels.items():
        where = f"{path}: {label!r}, the label of {name},"
        reading = readings[label]
        if len(reading.names) > 1:
            raise InputError(f"{where} is the name of {len(reading.names)} classes")
        if not reading.names and reading.class_index is None:
            raise InputError(
                f"{where} is neither a number below {len(class_names)} nor the name of a class"
                f"{did_you_mean(label, class_names)}"
            )
        if reading.differ and all_names == all_indices:
            words = explain_ambiguity(label, reading, class_names)
            raise InputError(
                f"{path}, the label of {name}: {words}, or the header file,name or file,index"
            )
        by_name = bool(reading.names) and (all_names or not reading.differ)
        index = reading.names[0] if by_name else reading.class_index
        assert index is not None
        indices[name] = index
    return indices


def _read_rows(path: str) -> list[list[str]]:
    try:
        return list(csv.reader(io.StringIO(read_text(path, any_bytes=True), newline="")))
    except csv.Error as error:
        raise ReadError(f"{path} is not a CSV file: {error}") from error
