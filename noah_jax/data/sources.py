"""Where images come from: encoded bytes and a label, by index.

One interface for the embedded sample, any image-classification set that TFDS holds in a
random-access format, and class folders.
"""

import os
from collections.abc import Sequence
from typing import Protocol

import tensorflow_datasets as tfds
from etils import epath

SAMPLE = "fashion_mnist_sample"
_FOLDER = "folder:"
_SAMPLE_DIR = os.path.join(os.path.dirname(__file__), "sample")
_EVAL_SPLITS = ("validation", "val", "test")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


class Source(Protocol):
    """Random access to one split.

    Attributes:
      name: what the source is, for messages.
      class_names: the classes, in the order of the labels.
    """

    name: str
    class_names: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        """The encoded image and its label."""

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
        `~` will do without the prefix).
      data_dir: where TFDS keeps its prepared data; by default TFDS's own choice.
      train_split: name of the training split.
      eval_split: name of the evaluation split; by default the first that exists of
        validation, val and test.

    Raises:
      ValueError: if there is no such dataset or split; says what there is.
    """
    root = data_folder(name)
    if root is not None:
        splits = sorted(p.name for p in root.iterdir() if p.is_dir())
        eval_split = _choose_split(name, splits, train_split, eval_split)
        train = FolderSource(root / train_split)
        return train, FolderSource(root / eval_split, class_names=train.class_names)
    builder = _tfds_builder(name, data_dir)
    eval_split = _choose_split(name, list(builder.info.splits), train_split, eval_split)
    return TfdsSource(builder, train_split), TfdsSource(builder, eval_split)


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
    root = data_folder(name)
    if root is None:
        builder = _tfds_builder(name, data_dir)
        splits = list(builder.info.splits)
        return TfdsSource(builder, _choose_split(name, splits, splits[0], split))
    folders = sorted(p.name for p in root.iterdir() if p.is_dir())
    if split is not None:
        _choose_split(name, folders, split, split)
    chosen = split or next((s for s in _EVAL_SPLITS if s in folders), None)
    if class_names is None and chosen is not None and "train" in folders:
        class_names = sorted(p.name for p in (root / "train").iterdir() if p.is_dir())
    return FolderSource(root / chosen if chosen else root, class_names=class_names)


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
    root = epath.Path(folder).expanduser()
    if not root.is_dir():
        raise ValueError(f"data folder {folder} does not exist")
    return root


class AbsentSource:
    """A split whose size and classes are known and whose images are not here.

    Args:
      name: what it is, for messages.
      class_names: the classes, in the order of the labels.
      length: number of images.
    """

    def __init__(self, name: str, class_names: Sequence[str], length: int):
        self.name = name
        self.class_names = list(class_names)
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        raise ValueError(f"{self.describe(index)} is not on this machine")

    def describe(self, index: int) -> str:
        return f"image {index} of {self.name}"

    def file_name(self, index: int) -> str:
        raise ValueError(f"{self.describe(index)} is not on this machine")


class TfdsSource:
    """A split of a prepared TFDS dataset, images as they are stored."""

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
        self.name = f"{builder.info.full_name}:{split}"
        features = builder.info.features
        self._image = _feature_of(features, tfds.features.Image, self.name)
        self._label = _feature_of(features, tfds.features.ClassLabel, self.name)
        self.class_names = list(features[self._label].names)
        try:
            self._data = builder.as_data_source(
                split, decoders={self._image: tfds.decode.SkipDecoding()}
            )
        except NotImplementedError as error:
            raise ValueError(
                f"{self.name} is stored as {builder.info.file_format.value}, which has no random"
                " access; convert it with `python scripts/prepare_imagenet.py --from-tfrecord"
                f" {builder.data_dir} --data-dir NEW` and give --config.data.dir=NEW"
            ) from error

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
            raise ValueError(f"{self.name} does not tell the names of its image files")
        return os.path.basename(name.decode() if isinstance(name, bytes) else name)


class FolderSource:
    """Class folders, `FOLDER/CLASS/image`, read as PyTorch's ImageFolder orders them.

    Args:
      folder: the split's folder.
      class_names: the classes that fix the labels; by default the sorted folder names.

    Raises:
      ValueError: if there are no images, or classes that `class_names` lacks.
    """

    def __init__(self, folder: epath.Path, class_names: Sequence[str] | None = None):
        self.name = os.fspath(folder)
        found = sorted(p.name for p in folder.iterdir() if p.is_dir())
        self.class_names = list(class_names or found)
        if unknown := sorted(set(found) - set(self.class_names)):
            raise ValueError(
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
            raise ValueError(f"{folder} holds no images in class folders (CLASS/image.jpg)")

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        path, label = self._files[index]
        if "://" in path:
            return epath.Path(path).read_bytes(), label
        with open(path, "rb") as file:  # half the time of epath's
            return file.read(), label

    def describe(self, index: int) -> str:
        return self._files[index][0]

    def file_name(self, index: int) -> str:
        """The name of the file, without folders."""
        return os.path.basename(self._files[index][0])


def _choose_split(name: str, splits: list[str], train: str, evaluation: str | None) -> str:
    """The evaluation split, once both splits are known to exist."""
    if evaluation is None:
        evaluation = next((s for s in _EVAL_SPLITS if s in splits), _EVAL_SPLITS[0])
    for split in (train, evaluation):
        if split not in splits:
            raise ValueError(f"{name} has no split {split!r}; it has {', '.join(splits) or 'none'}")
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
        raise ValueError(f"{name} under {where} cannot be read: {reason}") from error
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except (tfds.core.DatasetNotFoundError, ValueError) as error:  # or no possible name at all
        raise ValueError(
            f"unknown dataset {name!r}: not the embedded {SAMPLE!r}, not prepared under {where},"
            " not in TFDS's catalogue, and not a folder"
        ) from error
    try:
        builder.download_and_prepare()
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{name} is not prepared under {where} and preparing it failed:"
            f" {type(error).__name__}: {reason} (scripts/prepare_imagenet.py prepares imagenet2012;"
            " TFDS prepares many other sets with TensorFlow only: pip install tensorflow"
            " importlib_resources where you prepare them)"
        ) from error
    return builder


def _feature_of(features: tfds.features.FeaturesDict, kind: type, name: str) -> str:
    keys = [key for key, feature in features.items() if isinstance(feature, kind)]
    if len(keys) != 1:
        raise ValueError(
            f"{name} is no single-label image classification set: it has {len(keys)} features"
            f" of kind {kind.__name__}, 1 is needed; it has {', '.join(features)}"
        )
    return keys[0]
