"""Where images come from: encoded bytes and a label, by index.

One interface for the embedded sample, any image-classification set that TFDS holds in a
random-access format, class folders, and images with several labels from CSV files or TFDS.
"""

import csv
import io
import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from noah_jax.errors import InputError

SAMPLE = "fashion_mnist_sample"
_FOLDER = "folder:"
_CSV = "csv:"
_SAMPLE_DIR = os.path.join(os.path.dirname(__file__), "sample")
_EVAL_SPLITS = ("validation", "val", "test")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


class Source(Protocol):
    """Random access to one split.

    Attributes:
      name: what the source is, for messages.
      class_names: the classes, in the order of the labels.
      multi_label: whether an image has any number of labels.
    """

    name: str
    class_names: list[str]
    multi_label: bool

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[bytes, int | np.ndarray]:
        """The encoded image and its label, or int8 `[num_classes]`: 1, 0, or -1 (ignored)."""

    def describe(self, index: int) -> str:
        """Which image that is, for messages."""

    def file_name(self, index: int) -> str:
        """The name of the file that the image was, without folders.

        Raises:
          ValueError: if that is not known.
        """


def open_sources(
    name: str,
    *,
    data_dir: str | None = None,
    train_split: str = "train",
    eval_split: str | None = None,
) -> tuple[Source, Source]:
    """The training and the evaluation split of a dataset.

    Args:
      name: "fashion_mnist_sample" (embedded), the name of a TFDS dataset, or "folder:PATH"
        with `SPLIT/CLASS/image` files, local or `gs://` (a path that starts with `/`, `.` or
        `~` will do without the prefix), or "csv:PATH" with `SPLIT.csv` files, see `CsvSource`.
      data_dir: where TFDS keeps its prepared data; by default TFDS's own choice.
      train_split: name of the training split.
      eval_split: name of the evaluation split; by default the first that exists of
        validation, val and test.

    Raises:
      ValueError: if there is no such dataset or split; says what there is.
    """
    if (root := _csv_folder(name)) is not None:
        splits = sorted(p.stem for p in root.glob("*.csv"))
        eval_split = _choose_split(name, splits, train_split, eval_split)
        train = CsvSource(root / f"{train_split}.csv")
        return train, CsvSource(root / f"{eval_split}.csv", class_names=train.class_names)
    root = data_folder(name)
    if root is not None:
        splits = sorted(p.name for p in root.iterdir() if p.is_dir())
        eval_split = _choose_split(name, splits, train_split, eval_split)
        train = FolderSource(root / train_split)
        return train, FolderSource(root / eval_split, class_names=train.class_names)
    builder = _tfds_builder(name, data_dir)
    eval_split = _choose_split(name, list(builder.info.splits), train_split, eval_split)
    kind = _kind(builder)
    return kind(builder, train_split), kind(builder, eval_split)


def open_eval_source(
    name: str,
    *,
    data_dir: str | None = None,
    split: str | None = None,
    class_names: Sequence[str] | None = None,
) -> Source:
    """The evaluation split alone; there need be no training images.

    Args:
      name: as of `open_sources`; a folder may hold the classes themselves, `PATH/CLASS/image`.
      data_dir: where TFDS keeps its prepared data.
      split: by default the first that exists of validation, val and test.
      class_names: the classes that the labels of a folder count in, of which it may hold a
        part; by default those of its training split, else those it holds.

    Raises:
      ValueError: if there is no such dataset or split; says what there is.
    """
    if (root := _csv_folder(name)) is not None:
        splits = sorted(p.stem for p in root.glob("*.csv"))
        chosen = _choose_split(name, splits, splits[0] if splits else "", split)
        if class_names is None and "train" in splits:
            class_names = CsvSource(root / "train.csv").class_names
        return CsvSource(root / f"{chosen}.csv", class_names=class_names)
    root = data_folder(name)
    if root is None:
        builder = _tfds_builder(name, data_dir)
        splits = list(builder.info.splits)
        return _kind(builder)(builder, _choose_split(name, splits, splits[0], split))
    folders = sorted(p.name for p in root.iterdir() if p.is_dir())
    if split is not None:
        _choose_split(name, folders, split, split)
    chosen = split or next((s for s in _EVAL_SPLITS if s in folders), None)
    if class_names is None and chosen is not None and "train" in folders:
        class_names = sorted(p.name for p in (root / "train").iterdir() if p.is_dir())
    return FolderSource(root / chosen if chosen else root, class_names=class_names)


def _csv_folder(name: str) -> epath.Path | None:
    """The folder of CSV files that a dataset's name stands for; `None` if it is none."""
    if not name.startswith(_CSV):
        return None
    return _existing(name.removeprefix(_CSV))


def data_folder(name: str) -> epath.Path | None:
    """The folder that a dataset's name stands for; `None` if it is the name of a TFDS set.

    Raises:
      ValueError: if there is no such folder.
    """
    folder = name.removeprefix(_FOLDER)
    starts = ("/", ".", "~")
    named = folder == name and "://" not in name and not name.startswith(starts)
    if named and not os.path.isdir(name):
        return None
    return _existing(folder)


def _existing(folder: str) -> epath.Path:
    root = epath.Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"data folder {folder} does not exist")
    return root


class AbsentSource:
    """A split whose size and classes are known and whose images are not here.

    Args:
      name: what it is, for messages.
      class_names: the classes, in the order of the labels.
      length: number of images.
    """

    multi_label = False

    def __init__(self, name: str, class_names: Sequence[str], length: int):
        self.name = name
        self.class_names = list(class_names)
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        raise InputError(f"{self.describe(index)} is not on this machine")

    def describe(self, index: int) -> str:
        return f"image {index} of {self.name}"

    def file_name(self, index: int) -> str:
        raise InputError(f"{self.describe(index)} is not on this machine")


class TfdsSource:
    """A split of a prepared TFDS dataset, images as they are stored."""

    multi_label = False

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
        self.name = f"{builder.info.full_name}:{split}"
        features = builder.info.features
        self._image = _feature_of(features, tfds.features.Image, self.name)
        self._label = _feature_of(features, tfds.features.ClassLabel, self.name)
        self.class_names = list(features[self._label].names)
        self._data = _open_data(builder, split, self._image)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        record = self._data[index]
        return record[self._image], int(record[self._label])

    def describe(self, index: int) -> str:
        return f"image {index} of {self.name}"

    def file_name(self, index: int) -> str:
        """The name of the file that the image was, without folders."""
        name = self._data[index].get("file_name")
        if name is None:
            raise InputError(f"{self.name} does not tell the names of its image files")
        return os.path.basename(name.decode() if isinstance(name, bytes) else name)


class MultiLabelTfdsSource:
    """A split of a TFDS dataset whose images have several labels, such as `voc` and `coco`.

    The labels are the classes of an image's objects. With VOC's `labels_no_difficult`, classes
    of which an image has difficult objects alone are ignored, as in its own evaluation.
    """

    multi_label = True

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
        self.name = f"{builder.info.full_name}:{split}"
        features = builder.info.features
        self._image = _feature_of(features, tfds.features.Image, self.name)
        self._path, self.class_names = _list_of_labels(features)
        self._certain = "labels_no_difficult" if "labels_no_difficult" in features else None
        self._data = _open_data(builder, split, self._image)

    @staticmethod
    def fits(builder: tfds.core.DatasetBuilder) -> bool:
        """Whether a dataset has lists of labels, and no single ones."""
        features = builder.info.features
        single = any(isinstance(f, tfds.features.ClassLabel) for f in features.values())
        return not single and _list_of_labels(features) is not None

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> tuple[bytes, np.ndarray]:
        record = self._data[index]
        found = record
        for key in self._path:
            found = found[key]
        labels = np.zeros(len(self.class_names), np.int8)
        labels[np.asarray(found, np.int64)] = 1
        if self._certain is not None:
            uncertain = np.setdiff1d(found, record[self._certain]).astype(np.int64)
            labels[uncertain] = -1
        return record[self._image], labels

    def describe(self, index: int) -> str:
        return f"image {index} of {self.name}"


class CsvSource:
    """Images with any number of labels, listed in a CSV file.

    Two columns under the header `image,labels`: the path, relative to the file's folder or
    absolute, and the labels, with `;` between them. A label that starts with `-` is ignored for
    this image, neither there nor missing.

    Args:
      file: the CSV file, local or `gs://`.
      class_names: the classes that fix the order of the labels; by default those of the file,
        sorted.

    Raises:
      ValueError: on another header, a row of other columns, no rows, or unknown labels.
    """

    multi_label = True

    def __init__(self, file: epath.Path, class_names: Sequence[str] | None = None):
        self.name = os.fspath(file)
        try:
            rows = list(csv.reader(io.StringIO(file.read_text())))
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{file} is no CSV file: {error}") from error
        if not rows or [cell.strip() for cell in rows[0]] != ["image", "labels"]:
            raise InputError(
                f"{file} must start with the header image,labels; it starts with"
                f" {','.join(rows[0]) if rows else 'nothing'}"
            )
        listed = []
        for number, row in enumerate(rows[1:], 2):
            if len(row) != 2:
                raise InputError(
                    f"{file}, line {number}: must be a path and labels with ; between them, got"
                    f" {len(row)} column(s)"
                )
            labels = [label.strip() for label in row[1].split(";") if label.strip()]
            listed.append((os.fspath(file.parent / row[0].strip()), labels))
        if not listed:
            raise InputError(f"{file} lists no images")
        found = sorted({label.removeprefix("-") for _, labels in listed for label in labels})
        self.class_names = list(class_names or found)
        if unknown := sorted(set(found) - set(self.class_names)):
            raise InputError(f"{file} has labels unknown to the training: {', '.join(unknown[:5])}")
        place = {name: i for i, name in enumerate(self.class_names)}
        self._files = []
        for path, labels in listed:
            values = np.zeros(len(place), np.int8)
            for label in labels:
                values[place[label.removeprefix("-")]] = -1 if label.startswith("-") else 1
            self._files.append((path, values))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[bytes, np.ndarray]:
        path, labels = self._files[index]
        return _read(path), labels

    def describe(self, index: int) -> str:
        return self._files[index][0]


class FolderSource:
    """Class folders, `FOLDER/CLASS/image`, read as PyTorch's ImageFolder orders them.

    Args:
      folder: the split's folder.
      class_names: the classes that fix the labels; by default the sorted folder names.

    Raises:
      ValueError: if there are no images, or classes that `class_names` lacks.
    """

    multi_label = False

    def __init__(self, folder: epath.Path, class_names: Sequence[str] | None = None):
        self.name = os.fspath(folder)
        found = sorted(p.name for p in folder.iterdir() if p.is_dir())
        self.class_names = list(class_names or found)
        if unknown := sorted(set(found) - set(self.class_names)):
            raise InputError(
                f"{folder} holds the classes {', '.join(unknown[:5])}, unknown to the training"
                " split; both need the same class folders"
            )
        labels = {name: label for label, name in enumerate(self.class_names)}
        self._files = [
            (os.fspath(path), labels[name])
            for name in found
            for path in sorted((folder / name).iterdir())
            if path.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not self._files:
            raise InputError(f"{folder} holds no images in class folders (CLASS/image.jpg)")

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        path, label = self._files[index]
        return _read(path), label

    def describe(self, index: int) -> str:
        return self._files[index][0]

    def file_name(self, index: int) -> str:
        """The name of the file, without folders."""
        return os.path.basename(self._files[index][0])


def _read(path: str) -> bytes:
    if "://" in path:
        return epath.Path(path).read_bytes()
    with open(path, "rb") as file:  # half the time of epath's
        return file.read()


def _choose_split(name: str, splits: list[str], train: str, evaluation: str | None) -> str:
    """The evaluation split, once both splits are known to exist."""
    if evaluation is None:
        evaluation = next((s for s in _EVAL_SPLITS if s in splits), _EVAL_SPLITS[0])
    for split in (train, evaluation):
        if split not in splits:
            raise InputError(f"{name} has no split {split!r}; it has {', '.join(splits) or 'none'}")
    return evaluation


def _tfds_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """A builder whose data lie ready; downloads and prepares them where TFDS can."""
    if name == SAMPLE:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=_SAMPLE_DIR)
    where = data_dir or tfds.core.constants.DATA_DIR
    try:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError):
        pass  # not prepared, or no possible name: the catalogue knows more
    except Exception as error:  # whatever damaged files make TFDS raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{name} under {where} cannot be read: {reason}") from error
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except (tfds.core.DatasetNotFoundError, ValueError) as error:  # or no possible name at all
        raise InputError(
            f"unknown dataset {name!r}: not the embedded {SAMPLE!r}, not prepared under {where},"
            " not in TFDS's catalogue, and not a folder"
        ) from error
    try:
        builder.download_and_prepare()
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{name} is not prepared under {where} and preparing it failed:"
            f" {type(error).__name__}: {reason} (scripts/prepare_imagenet.py prepares imagenet2012;"
            " TFDS prepares many other sets with TensorFlow only: pip install tensorflow"
            " importlib_resources where you prepare them)"
        ) from error
    return builder


def _kind(builder: tfds.core.DatasetBuilder) -> "type[TfdsSource | MultiLabelTfdsSource]":
    return MultiLabelTfdsSource if MultiLabelTfdsSource.fits(builder) else TfdsSource


def _open_data(builder: tfds.core.DatasetBuilder, split: str, image: str) -> Sequence[Any]:
    """The records of a split, their images as they are stored."""
    try:
        return builder.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        raise InputError(
            f"{builder.info.full_name}:{split} is stored as {builder.info.file_format.value}, which"
            " has no random access; convert it with `python scripts/prepare_imagenet.py"
            f" --from-tfrecord {builder.data_dir} --data-dir NEW` and give --config.data.dir=NEW"
        ) from error


def _list_of_labels(
    features: tfds.features.FeaturesDict,
) -> tuple[tuple[str, ...], list[str]] | None:
    """Where a record has its list of labels, alone or in its list of objects; the classes."""
    label = tfds.features.ClassLabel
    lists = {k: f.feature for k, f in features.items() if isinstance(f, tfds.features.Sequence)}
    for key, feature in lists.items():
        if isinstance(feature, label) and key != "labels_no_difficult":
            return (key,), list(feature.names)
    for key, feature in lists.items():
        if isinstance(feature, tfds.features.FeaturesDict):
            for inner, what in feature.items():
                if isinstance(what, label):
                    return (key, inner), list(what.names)
    return None


def _feature_of(features: tfds.features.FeaturesDict, kind: type, name: str) -> str:
    keys = [key for key, feature in features.items() if isinstance(feature, kind)]
    if len(keys) != 1:
        raise InputError(
            f"{name} is no image classification set: it has {len(keys)} features"
            f" of kind {kind.__name__}, 1 is needed; it has {', '.join(features)}"
        )
    return keys[0]
