"""Image-classification datasets of Hugging Face, by the library `datasets`, images as stored.

The library downloads a dataset once, keeps it as Arrow files in its own cache, and gives random
access to them. HF_HOME, HF_HUB_OFFLINE and a login count as they do there.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from noah_jax.data.folder_walk import first_names
from noah_jax.data.source import Label, check_label, read_bytes
from noah_jax.errors import InputError, one_line
from noah_jax.paths import expand_home

if TYPE_CHECKING:
    import datasets

# hf:NAME[@revision][:config]
_NAME = re.compile(r"(?P<name>[^@]+?)(@(?P<revision>[^:]+))?(:(?P<config>[^/:]+))?")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_TABLES = {".parquet": "parquet", ".arrow": "arrow"}


class HuggingFaceSource:
    """The images of a split.

    Args:
      name: Name of the split, for messages.
      split: The split. It has one column of images, and labels in the only column of class labels
        or in one that is called label, labels or fine_label: class labels, whole numbers or texts,
        or lists of these.
      class_names: Names of the classes of labels that are no class labels; by default the sorted
        texts, or all numbers up to the highest.

    Attributes:
      fingerprint: A SHA-256 of the labels, in their order.

    Raises:
      InputError: If there is no such column, or a label is not among `class_names`.
    """

    def __init__(
        self, name: str, split: "datasets.Dataset", class_names: Sequence[str] | None = None
    ):
        import datasets

        self.name = name
        self._image = _only_image(split, name)
        column = _label_column(split, name)
        feature = split.features[column]
        inner = getattr(feature, "feature", None)
        self.multi_label = inner is not None
        values = split.with_format(None)[column][:]
        kind = inner if self.multi_label else feature
        if isinstance(kind, datasets.ClassLabel):
            class_names = list(kind.names)
        self.class_names, self._labels = _number(values, class_names, name)
        self._images = split.select_columns([self._image]).cast_column(
            self._image, datasets.Image(decode=False)
        )
        self.fingerprint = _fingerprint(self._labels)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[bytes, Label]:
        image = self._images[index][self._image] or {}
        data = image.get("bytes")
        if data is None:
            data = read_bytes(image["path"]) if image.get("path") else b""
        return data, self._label(index)

    def _label(self, index: int) -> Label:
        value = self._labels[index]
        if not self.multi_label:
            return int(value)
        labels = np.zeros(len(self.class_names), np.int8)
        for class_index in value:
            check_label(self.describe(index), int(class_index), len(labels))
            labels[class_index] = 1
        return labels

    def describe(self, index: int) -> str:
        return f"image {index} of {self.name}"

    def file_name(self, index: int) -> str:
        path = (self._images[index][self._image] or {}).get("path")
        if not path:
            raise InputError(f"{self.name} does not tell the names of its image files")
        return os.path.basename(path)


class HuggingFaceDataset:
    """The splits that `hf:NAME[@revision][:config]` stands for.

    Args:
      place: What stands after `hf:`. NAME is a dataset's name on huggingface.co, a folder that
        `datasets.load_dataset` or `load_from_disk` reads, or a parquet or Arrow file.

    Attributes:
      splits: Names of the splits.

    Raises:
      InputError: If the library cannot load it.
      ImportError: If the library is missing.
    """

    def __init__(self, place: str):
        match = _NAME.fullmatch(place)
        if match is None:
            raise InputError(f"hf:{place} must be hf:NAME, hf:NAME@REVISION or hf:NAME:CONFIG")
        self._place = place
        self._splits = _load(**match.groupdict())
        self.splits = list(self._splits)

    def open(self, split: str, class_names: Sequence[str] | None = None) -> HuggingFaceSource:
        """Opens a split, see `HuggingFaceSource`."""
        return HuggingFaceSource(f"hf:{self._place}:{split}", self._splits[split], class_names)


def _load(name: str, revision: str | None, config: str | None) -> dict[str, "datasets.Dataset"]:
    import datasets

    path = expand_home(name)
    is_local = os.path.exists(path)
    table = _TABLES.get(os.path.splitext(path)[1]) if os.path.isfile(path) else None
    try:
        if is_local and os.path.isfile(os.path.join(path, "dataset_dict.json")):
            return dict(datasets.load_from_disk(path))
        if is_local and os.path.isfile(os.path.join(path, "state.json")):
            return {"train": datasets.load_from_disk(path)}
        if table:
            return dict(datasets.load_dataset(table, data_files=path))
        return dict(datasets.load_dataset(path if is_local else name, config, revision=revision))
    except ImportError:
        raise
    except Exception as error:  # the library raises errors of many kinds
        raise InputError(
            f"hf:{name} cannot be loaded by the library datasets: {type(error).__name__}:"
            f" {one_line(error, 300)}"
        ) from error


def _only_image(split: "datasets.Dataset", name: str) -> str:
    import datasets

    columns = [
        key for key, feature in split.features.items() if isinstance(feature, datasets.Image)
    ]
    if len(columns) != 1:
        raise InputError(
            f"{name} must have one column of images, it has {len(columns)}; its columns are"
            f" {', '.join(split.column_names)}"
        )
    return columns[0]


def _label_column(split: "datasets.Dataset", name: str) -> str:
    import datasets

    for column in _LABEL_COLUMNS:
        if column in split.features:
            return column
    inner = {key: getattr(feature, "feature", feature) for key, feature in split.features.items()}
    columns = [key for key, feature in inner.items() if isinstance(feature, datasets.ClassLabel)]
    if len(columns) != 1:
        raise InputError(
            f"{name} must have a column called {', '.join(_LABEL_COLUMNS)}, or one of class labels,"
            f" it has {len(columns)}; its columns are {', '.join(split.column_names)}"
        )
    return columns[0]


def _number(
    values: Sequence[Any], class_names: Sequence[str] | None, name: str
) -> tuple[list[str], list[Any] | np.ndarray]:
    """Turns labels into class indices, -1 where there is none; see `HuggingFaceSource`."""
    lists = [value if isinstance(value, list) else [value] for value in values]
    seen = {item for items in lists for item in items} - {None}
    texts = any(isinstance(item, str) for item in seen)
    if not texts:
        names = list(class_names or map(str, range(max(seen, default=-1) + 1)))
        positions: dict[Any, int] = {}
    else:
        names = list(class_names or sorted(seen))
        positions = {text: index for index, text in enumerate(names)}
        if unknown := sorted(seen - positions.keys()):
            raise InputError(
                f"{name} has labels that are none of its {len(names):,} classes:"
                f" {first_names(unknown)}"
            )

    def number(item: Any) -> int:
        return -1 if item is None else positions[item] if texts else int(item)

    if any(isinstance(value, list) for value in values):
        return names, [[number(x) for x in value or []] for value in values]
    return names, np.array([number(value) for value in values], np.int64)


def _fingerprint(labels: list[Any] | np.ndarray) -> str:
    text = "\n".join(map(str, labels))
    return hashlib.sha256(text.encode()).hexdigest()
