"""Finds the images in a folder and its subfolders, in one way for all programs.

The suffixes are those of torchvision's ImageFolder. Linked folders are followed. Hidden files and
folders are passed over, and so are `__MACOSX` folders, which zip files from a Mac contain.
"""

import collections
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence

from etils import epath

from noah_jax import console, distributed
from noah_jax.data.source import IMAGE_SUFFIXES
from noah_jax.errors import InputError, ReadError
from noah_jax.files import is_remote

_SYSTEM_FOLDERS = {"__MACOSX"}
_MAX_LISTED = 5


@dataclasses.dataclass
class LeftOut:
    """What was left out of the images of a folder.

    Attributes:
      other_files: Number of files that are not images, by suffix.
      hidden: Names of hidden images and folders, which were passed over.
    """

    other_files: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    hidden: list[str] = dataclasses.field(default_factory=list)

    def tell(self, folder: str) -> None:
        """Warns of what was left out, in one line; says nothing if nothing was."""
        parts = []
        if self.other_files:
            suffixes = [f"{suffix} {count:,}" for suffix, count in self.other_files.most_common()]
            parts.append(
                f"{self.other_files.total():,} file(s) that are no images by their suffix"
                f" ({first_names(suffixes)})"
            )
        if self.hidden:
            names = first_names(sorted(set(self.hidden)))
            parts.append(f"{len(self.hidden):,} hidden image(s) or folder(s) ({names})")
        if parts:
            warn_once(f"{folder}: left out {' and '.join(parts)}")


def walk_images(folder: str, left_out: LeftOut) -> list[str]:
    """Returns the paths of the images in a folder and its subfolders.

    Args:
      folder: The folder, local or `gs://`.
      left_out: Takes what is no image or hidden.

    Returns:
      The images in the folder, sorted by name, then those of each of its subfolders likewise.

    Raises:
      InputError: If a linked folder leads back to a folder above it.
      ReadError: If a folder cannot be read.
    """
    return list(_walk(folder, left_out, {}))


def list_folder(folder: str, left_out: LeftOut) -> tuple[list[str], list[str]]:
    """Lists a folder without its subfolders; links count as what they lead to.

    Args:
      folder: The folder, local or `gs://`.
      left_out: Takes what is no image or hidden.

    Returns:
      The names of the folders and of the images in it, each sorted.

    Raises:
      ReadError: If the folder cannot be read.
    """
    folders, images = [], []
    for name, is_dir in sorted(_entries(folder)):
        if name.startswith(".") or name in _SYSTEM_FOLDERS:
            if is_dir or _is_image(name):
                left_out.hidden.append(name)
        elif is_dir:
            folders.append(name)
        elif _is_image(name):
            images.append(name)
        else:
            left_out.other_files[os.path.splitext(name)[1].lower() or "no suffix"] += 1
    return folders, images


def first_names(names: Sequence[str]) -> str:
    """Joins the first few names, and says how many more there are."""
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more


def warn_once(text: str) -> None:
    """Prints a warning on the first process of a run, once even if a folder is opened again."""
    if distributed.process_index() == 0:
        console.warn_once(text)


def _walk(folder: str, left_out: LeftOut, above: Mapping[tuple[int, int], str]) -> Iterator[str]:
    """Yields what `walk_images` returns.

    Args:
      folder: The folder.
      left_out: Takes what is no image or hidden.
      above: The folders that led here, by device and inode.
    """
    if not is_remote(folder):
        status = os.stat(folder)
        identity = status.st_dev, status.st_ino
        if identity in above:
            raise InputError(
                f"{folder} links back to {above[identity]}, a folder above it; remove the link"
            )
        above = {**above, identity: folder}
    folders, images = list_folder(folder, left_out)
    yield from (os.path.join(folder, name) for name in images)
    for name in folders:
        yield from _walk(os.path.join(folder, name), left_out, above)


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _entries(folder: str) -> Iterator[tuple[str, bool]]:
    """Yields the name of everything in a folder, and whether it is a folder."""
    try:
        if not is_remote(folder):
            with os.scandir(folder) as entries:
                yield from ((entry.name, entry.is_dir()) for entry in entries)
            return
        for path in epath.Path(folder).iterdir():
            # In a bucket it takes a request to learn whether something is a folder.
            yield path.name, not _is_image(path.name) and path.is_dir()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ReadError(f"the folder {folder} cannot be read: {reason}") from error
