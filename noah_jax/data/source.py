"""The protocol of image sources: an encoded image and its label, by index.

The sources are `noah_jax.data.folders`, `csv_files`, `coco`, `voc`, `image_files` and `tfds`;
`noah_jax.data.sources` opens the right one for a dataset's name. This module imports none of
them, so that code that only decodes images does not import TFDS.
"""

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath

from noah_jax.errors import (
    InputError,
    UnlabelledImageError,
    UnreadableImageError,
    one_line,
)
from noah_jax.files import is_remote

SAMPLE = "fashion_mnist_sample"  # the dataset that is part of this package
# Those of torchvision's ImageFolder.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".pgm", ".ppm", ".tif", ".tiff")

# A class index; or, for images with several labels, int8 `[num_classes]` of 1 (present),
# 0 (absent) and -1 (ignored).
Label = int | np.ndarray


class Source(Protocol):
    """Random access to the images of one split.

    Attributes:
      name: Name of the split, for messages.
      class_names: Names of the classes; a class index is a position in this list.
      multi_label: Whether an image has any number of labels instead of exactly one.
    """

    name: str
    class_names: list[str]
    multi_label: bool

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[bytes, Label]:
        """Returns the encoded image and its label."""

    def describe(self, index: int) -> str:
        """Returns how messages call an image: its path, or its index in the split."""

    def file_name(self, index: int) -> str:
        """Returns the name of an image's file, without folders.

        Raises:
          InputError: If the source does not know it.
        """


class AbsentSource:
    """A split whose size and classes are known, but whose images are not on this machine.

    Args:
      name: Name of the split, for messages.
      class_names: Names of the classes.
      length: Number of images.
      multi_label: Whether an image has any number of labels.
    """

    def __init__(
        self, name: str, class_names: Sequence[str], length: int, *, multi_label: bool = False
    ):
        self.name = name
        self.multi_label = multi_label
        self.class_names = list(class_names)
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[bytes, Label]:
        raise InputError(f"{self.describe(index)} is not on this machine")

    def describe(self, index: int) -> str:
        return f"image {index} of {self.name}"

    def file_name(self, index: int) -> str:
        raise InputError(f"{self.describe(index)} is not on this machine")


class ImageFiles:
    """The part of a source that its images are files; a base class of sources.

    Attributes:
      name: Name of the source, for messages.
      files: Path and label of each image; the subclass fills it.
    """

    name: str
    files: list[tuple[str, Any]]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[bytes, Any]:
        path, label = self.files[index]
        return read_bytes(path), label

    def describe(self, index: int) -> str:
        return self.files[index][0]

    def file_name(self, index: int) -> str:
        return os.path.basename(self.files[index][0])


def check_files_exist(source: ImageFiles) -> None:
    """Checks that the files of a source are there, by one look into each of their folders.

    Raises:
      InputError: If some are missing.
    """
    wanted: dict[str, list[str]] = {}
    for path, _ in source.files:
        folder, _, name = path.rpartition("/")
        wanted.setdefault(folder, []).append(name)
    missing = []
    for folder, names in wanted.items():
        root = epath.Path(folder)
        there = {path.name for path in root.iterdir()} if root.is_dir() else set()
        missing += [f"{folder}/{name}" for name in names if name not in there]
    if missing:
        raise InputError(
            f"{source.name} lists {len(source.files):,} images, {len(missing):,} of them are"
            f" missing, such as {missing[0]}; get them again"
        )


def check_label(name: str, label: int, num_classes: int) -> None:
    """Checks that a label is a class; anything else would index the logits from their end.

    Args:
      name: How messages call the image.
      label: The label.
      num_classes: Number of classes.

    Raises:
      UnlabelledImageError: If it is none.
    """
    if not 0 <= label < num_classes:
        raise UnlabelledImageError(
            name, f"its label is {label}, and the classes are 0 to {num_classes - 1}"
        )


def read_bytes(path: str) -> bytes:
    """Reads a whole file, local or `gs://`.

    Raises:
      UnreadableImageError: If the file cannot be read; it counts as a corrupt image.
    """
    try:
        if is_remote(path):
            return epath.Path(path).read_bytes()
        with open(path, "rb", buffering=0) as file:  # takes half the time of epath
            return file.read()
    except OSError as error:
        raise UnreadableImageError(path, error.strerror or one_line(error, 200)) from error
