"""Other labels than a dataset's own."""

import csv
import json
import os
import pathlib
from collections.abc import Sequence

from noah_jax.data.image_files import FileSource
from noah_jax.data.source import Source
from noah_jax.data.sources import data_folder
from noah_jax.errors import InputError

_HEADS = {"file", "filename", "file_name", "image", "path"}


class _Chosen:
    """Some images of a source, with other labels."""

    multi_label = False

    def __init__(self, source: Source, rows: Sequence[tuple[int, int]]):
        self.name = source.name
        self.class_names = source.class_names
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


def labelled_folder(dataset: str, path: str, class_names: Sequence[str]) -> Source | None:
    """The images of a folder that a table names, with its labels; `None` if it is no folder.

    Args:
      dataset: what `open_eval_source` takes.
      path: CSV lines `file,label`; files are relative to the folder.
      class_names: the classes, for labels that are names.

    Raises:
      ValueError: if the table cannot be read, or files that it names are missing.
    """
    root = data_folder(dataset)
    if root is None:
        return None
    table = _read(path, class_names)
    files = [os.path.join(os.fspath(root), name) for name in table]
    if missing := [file for file in files if not os.path.isfile(file)]:
        raise InputError(
            f"{len(missing)} of the {len(files)} files that {path} names are missing, such as"
            f" {missing[0]}"
        )
    return FileSource(files, list(table.values()), name=os.fspath(root), class_names=class_names)


def relabelled(source: Source, path: str, class_names: Sequence[str]) -> Source:
    """The images of a TFDS set that a table names by file name, with its labels.

    Raises:
      ValueError: as `labelled_folder`; also if the set does not tell its files' names.
    """
    table = {os.path.basename(name): label for name, label in _read(path, class_names).items()}
    names = {source.file_name(i): i for i in range(len(source))}
    if missing := sorted(set(table) - set(names)):
        raise InputError(f"{path} names {missing[0]}, which {source.name} does not have")
    return _Chosen(source, [(names[name], label) for name, label in table.items()])


def real_labels(source: Source, path: str, num_classes: int) -> list[list[int]]:
    """ImageNet-ReaL's labels, by index of the source.

    Args:
      source: the images.
      path: JSON, a list of labels for every image in order of the file names.
      num_classes: labels must be below it.

    Raises:
      ValueError: if the file is something else, or has another number of images.
    """
    try:
        lists = json.loads(pathlib.Path(path).read_text())
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}") from error
    if not isinstance(lists, list) or not all(_are_labels(x, num_classes) for x in lists):
        raise InputError(
            f"{path} must be a JSON list with a list of labels in 0..{num_classes - 1} for every"
            " image"
        )
    if len(lists) != len(source):
        raise InputError(f"{path} has {len(lists)} images, {source.name} has {len(source)}")
    order = sorted(range(len(source)), key=source.file_name)
    by_index: list[list[int]] = [[] for _ in order]
    for index, labels in zip(order, lists, strict=True):
        by_index[index] = labels
    return by_index


def _are_labels(labels: object, num_classes: int) -> bool:
    return isinstance(labels, list) and all(
        type(label) is int and 0 <= label < num_classes for label in labels
    )


def _read(path: str, class_names: Sequence[str]) -> dict[str, int]:
    """A label by file of a table."""
    numbers = {name: number for number, name in enumerate(class_names)}
    table: dict[str, int] = {}
    with open(path, newline="", encoding="utf-8") as lines:
        for row in csv.reader(lines):
            if not row or (not table and row[0].strip().lower() in _HEADS):
                continue
            if len(row) != 2:
                raise InputError(f"{path} must have lines `file,label`, got {','.join(row)!r}")
            name, label = (cell.strip() for cell in row)
            number = int(label) if label.isdigit() else numbers.get(label, -1)
            if not 0 <= number < len(class_names):
                raise InputError(
                    f"{path}: {label!r}, the label of {name}, is neither a number below"
                    f" {len(class_names)} nor the name of a class"
                )
            table[name] = number
    if not table:
        raise InputError(f"{path} holds no lines `file,label`")
    return table
