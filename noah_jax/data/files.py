"""Image files by path: what a command line names, and files with labels of their own."""

import os
from collections.abc import Iterator, Sequence

from noah_jax.data.decoding import DamagedImageError
from noah_jax.data.sources import IMAGE_SUFFIXES
from noah_jax.errors import InputError


class FileSource:
    """A source of local files. One that cannot be read counts as damaged.

    Args:
      paths: the files.
      labels: of each; by default 0.
      name: what the files are, for messages.
      class_names: the classes, in the order of the labels.
    """

    multi_label = False

    def __init__(
        self,
        paths: Sequence[str],
        labels: Sequence[int] | None = None,
        *,
        name: str = "the images",
        class_names: Sequence[str] = (),
    ):
        self.name = name
        self.class_names = list(class_names)
        self._paths = list(paths)
        self._labels = list(labels) if labels is not None else [0] * len(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        try:
            with open(self._paths[index], "rb") as file:
                return file.read(), self._labels[index]
        except OSError as error:
            reason = error.strerror or str(error)
            raise DamagedImageError(self._paths[index], reason) from error

    def describe(self, index: int) -> str:
        return self._paths[index]

    def file_name(self, index: int) -> str:
        return os.path.basename(self._paths[index])


def find_images(paths: Sequence[str]) -> list[str]:
    """The files among paths, and the images in the folders among them, sorted, at any depth.

    Raises:
      ValueError: if a folder holds no image.
    """
    found = []
    for path in paths:
        if not os.path.isdir(path):
            found.append(path)
            continue
        inside = list(_images_below(path))
        if not inside:
            raise InputError(f"{path} holds no images ({', '.join(IMAGE_SUFFIXES)})")
        found += inside
    return found


def _images_below(folder: str) -> Iterator[str]:
    for where, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            if file.lower().endswith(IMAGE_SUFFIXES):
                yield os.path.join(where, file)
