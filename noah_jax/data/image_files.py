"""Local image files by path: the files that a command line names, and their source."""

import os
from collections.abc import Sequence

from noah_jax.data.folder_walk import LeftOut, walk_images
from noah_jax.data.source import IMAGE_SUFFIXES, read_bytes
from noah_jax.errors import InputError, MissingError, near_matches, shown


class FileSource:
    """A source of local files; a file that cannot be read counts as a corrupt image.

    Args:
      paths: Paths of the files.
      labels: Class index of each file; by default 0.
      name: Name of the files, for messages.
      class_names: Names of the classes.
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
        return read_bytes(self._paths[index]), self._labels[index]

    def describe(self, index: int) -> str:
        return self._paths[index]

    def file_name(self, index: int) -> str:
        return os.path.basename(self._paths[index])


def find_images(paths: Sequence[str]) -> list[str]:
    """Returns the files among the paths and, for each folder, its images at any depth, sorted.

    A warning says what is left out of a folder, see `noah_jax.data.folder_walk`.

    Raises:
      MissingError: If there is nothing at any of the paths; one that is wrong among others counts
        as a corrupt image.
      InputError: If a folder holds no image, or a linked folder leads back to one above it.
    """
    if paths and not any(map(os.path.lexists, paths)):
        raise MissingError(f"{shown(paths[0])}: no such file or folder{_near(paths[0])}")
    found = []
    for path in paths:
        if not os.path.isdir(path):
            found.append(path)
            continue
        left_out = LeftOut()
        below = walk_images(path, left_out)
        left_out.tell(path)
        if not below:
            raise InputError(f"{path} holds no images ({', '.join(IMAGE_SUFFIXES)})")
        found += below
    return found


def _near(path: str) -> str:
    """Returns a question to append to an error, if a file beside it has a similar name."""
    folder, name = os.path.split(path)
    if not os.path.isdir(folder or "."):
        return f"; there is no folder {shown(folder)}"
    near = near_matches(name, os.listdir(folder or "."))
    return f"; did you mean {shown(os.path.join(folder, near[0]))}?" if near else ""
