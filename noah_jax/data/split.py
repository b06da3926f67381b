"""Splits one folder of class folders, `FOLDER/CLASS/image`, into training and evaluation images.

An image's place depends on a hash of its name within its class folder, so it is the same on every
host and stays when images are added. Of each class the images with the smallest hashes are for
evaluation: a fraction of all, but at least one, and never the last one that is left to train on. A
run remembers its split in a file, which decides for the images that it names.
"""

import dataclasses
import hashlib
import json
import os
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from etils import epath

from noah_jax.data.folder_walk import LeftOut, first_names, list_folder
from noah_jax.data.folders import FolderSource, folder_names
from noah_jax.data.source import ImageFiles
from noah_jax.errors import InputError, ReadError
from noah_jax.files import is_remote

SPLIT_FILE = "split.json"

# Folders of these names hold class folders; any other folder is taken for a class.
_SPLIT_NAMES = frozenset(
    {"train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing"}
)

# The size of each image's file in bytes, by its path below the folder, with `/`; `None` for
# `gs://`, where asking for a size takes as long as reading a small file.
Sizes = dict[str, int | None]


@dataclasses.dataclass(frozen=True)
class FolderSplit:
    """Which images of a folder are for training and which for evaluation.

    Attributes:
      folder: The folder.
      fraction: The fraction that is for evaluation.
      training: The training images.
      evaluation: The evaluation images.
    """

    folder: str
    fraction: float
    training: Sizes
    evaluation: Sizes

    def describe(self) -> str:
        """Says in one line what was split how."""
        trained = {name.partition("/")[0] for name in self.training}
        untested = sorted(trained - {name.partition("/")[0] for name in self.evaluation})
        note = f"; only one image, to train on, have {first_names(untested)}" if untested else ""
        return (
            f"{self.folder} is split: {len(self.training):,} images to train on,"
            f" {len(self.evaluation):,} to evaluate on, some of every class, chosen by a hash of"
            f" their file names (data.eval_fraction={self.fraction:g}){note}"
        )

    def trained_on(self, folder: str, name: str, size: int | None) -> bool:
        """Says whether an image was trained on.

        In another folder, such as a copy, an image is the same if its name and its size are.

        Args:
          folder: The folder of the image.
          name: Path of the image below the folder.
          size: Its size in bytes, `None` if it is not known.
        """
        if name not in self.training:
            return False
        known = self.training[name]
        same_folder = os.path.realpath(folder) == os.path.realpath(self.folder)
        return same_folder or size is None or known is None or size == known


class FolderPart(ImageFiles):
    """Some images of a folder of class folders.

    Args:
      name: Name of the part, for messages.
      class_names: Names of the classes.
      files: Path and class index of each image.
      split: The split that the part belongs to; `None` if it belongs to none.
    """

    multi_label = False

    def __init__(
        self,
        name: str,
        class_names: Sequence[str],
        files: Sequence[tuple[str, int]],
        split: FolderSplit | None = None,
    ):
        self.name = name
        self.class_names = list(class_names)
        self.files = list(files)
        self.split = split


def unsplit_folder(root: epath.Path) -> epath.Path | None:
    """Finds the class folders that are to be split.

    Args:
      root: The folder that a dataset's name stands for.

    Returns:
      The folder itself if it holds class folders, its `train` if there is nothing to evaluate on
      beside it, and `None` if it has its own splits. A class may be called `train` if its folder
      has images of its own.
    """
    splits = {
        name for name in folder_names(root) if name in _SPLIT_NAMES and not _has_images(root / name)
    }
    if splits == {"train"}:
        return root / "train"
    return None if splits else root


def split_class_folder(
    root: epath.Path, fraction: float, remembered: FolderSplit | None = None
) -> tuple[FolderPart, FolderPart]:
    """Splits a folder of class folders.

    Args:
      root: The folder, local or `gs://`.
      fraction: The fraction of the images that is for evaluation.
      remembered: The split of an earlier start of the run, which decides for its images.

    Returns:
      The training and the evaluation images.

    Raises:
      InputError: If there are no images, or no class has two.
    """
    source = FolderSource(root)
    sizes = _sizes(source)
    by_class: dict[int, list[str]] = {}
    for name, (_, class_index) in zip(sizes, source.files, strict=True):
        by_class.setdefault(class_index, []).append(name)
    chosen: set[str] = set()
    for names in by_class.values():
        chosen |= evaluation_names(names, fraction, remembered)
    if not chosen:
        raise InputError(f"no class of {root} has two images, of which one could be evaluated on")
    split = FolderSplit(
        os.fspath(root),
        fraction,
        {name: size for name, size in sizes.items() if name not in chosen},
        {name: size for name, size in sizes.items() if name in chosen},
    )
    training, evaluation = (
        FolderPart(
            os.fspath(root),
            source.class_names,
            [file for name, file in zip(sizes, source.files, strict=True) if name in part],
            split,
        )
        for part in (split.training, split.evaluation)
    )
    return training, evaluation


def evaluation_names(
    names: Collection[str], fraction: float, remembered: FolderSplit | None = None
) -> set[str]:
    """Chooses the images of one class that are for evaluation.

    Args:
      names: Paths of the class's images below the folder, `CLASS/image`.
      fraction: The fraction of them that is for evaluation.
      remembered: A split that decides for the images that it names.
    """
    known = remembered.training.keys() | remembered.evaluation.keys() if remembered else set()
    if remembered and known & set(names):
        new = {name for name in names if name not in known and _position(name) < fraction}
        return new | (remembered.evaluation.keys() & set(names))
    ranked = sorted(names, key=lambda name: (_position(name), name))
    count = sum(_position(name) < fraction for name in ranked)
    return set(ranked[: min(max(count, 1), len(ranked) - 1)])


def without_training_images(source: FolderSource, split: FolderSplit) -> FolderPart:
    """Leaves out the images that a run was trained on.

    Args:
      source: The images of class folders.
      split: The split that the run remembers.

    Raises:
      InputError: If none is left.
    """
    files = [
        file
        for (name, size), file in zip(_sizes(source).items(), source.files, strict=True)
        if not split.trained_on(source.name, name, size)
    ]
    if not files:
        raise InputError(
            f"the model was trained on all images of {source.name}; evaluate it on others"
        )
    left_out = len(source.files) - len(files)
    name = f"{source.name}, without {left_out:,} training images" if left_out else source.name
    return FolderPart(name, source.class_names, files)


def read_split(workdir: epath.Path) -> FolderSplit | None:
    """Reads the split that a run's folder remembers; `None` if it remembers none.

    Raises:
      ReadError: If the file is not such a split.
    """
    path = workdir / SPLIT_FILE
    if not path.exists():
        return None
    try:
        return FolderSplit(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ReadError(f"{path} cannot be read: {error}") from error


def split_text(split: FolderSplit) -> str:
    """Returns the contents of the file that remembers a split."""
    values: Mapping[str, Any] = dataclasses.asdict(split)
    return json.dumps(values, indent=1) + "\n"


def _position(name: str) -> float:
    """Returns a hash in 0..1 of an image's path within its class folder.

    File systems differ in how they compose accents, so the name is composed first.
    """
    inner = unicodedata.normalize("NFC", name.partition("/")[2])
    checksum = hashlib.sha256(inner.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(checksum[:8], "big") / 2**64


def _sizes(source: FolderSource) -> Sizes:
    root = source.name.rstrip("/") + "/"
    return {path.removeprefix(root).replace(os.sep, "/"): _size(path) for path, _ in source.files}


def _size(path: str) -> int | None:
    try:
        return None if is_remote(path) else os.path.getsize(path)
    except OSError:  # A link that leads nowhere; reading it will say so.
        return None


def _has_images(folder: epath.Path) -> bool:
    return bool(list_folder(os.fspath(folder), LeftOut())[1])
