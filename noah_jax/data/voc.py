"""Images with several labels in the layout of PASCAL VOC's development kit.

`ImageSets/Main/CLASS_SPLIT.txt` says of each image of a split whether it shows the class: 1 (yes),
-1 (no) or 0 (only objects that are hard to recognise). VOC's own evaluation ignores the last, and
so do training and evaluation here. (The code of CSRA, `prepare_voc.py` in
github.com/Kevinz-code/CSRA, ignores them in the evaluation and trains on them as absent.)
"""

import os
from collections.abc import Sequence

import numpy as np
from etils import epath

from noah_jax.data.source import ImageFiles, check_files_exist
from noah_jax.errors import InputError
from noah_jax.files import read_text

_LISTS = ("ImageSets", "Main")
_LABELS = {"1": 1, "-1": 0, "0": -1}


class VocSource(ImageFiles):
    """The images of one split of PASCAL VOC, in the order of its lists.

    Args:
      root: The folder of a year, see `voc_folder`.
      split: Name of the split: "train", "val", "trainval" or "test".
      class_names: Names of the classes, in the order of their indices; by default the sorted
        names of those that have a list.

    Raises:
      InputError: If a list is malformed, the lists name different images, images are missing, or
        a class is not among `class_names`.
    """

    multi_label = True

    def __init__(self, root: epath.Path, split: str, class_names: Sequence[str] | None = None):
        self.name = f"{root}:{split}"
        names = sorted(name for name, own in _lists(root) if own == split)
        self.class_names = list(class_names or names)
        if unknown := sorted(set(names) - set(self.class_names)):
            raise InputError(
                f"{self.name} has classes unknown to the training: {', '.join(unknown[:5])}"
            )
        images: list[str] | None = None
        columns = {}
        for name in names:
            file = root.joinpath(*_LISTS, f"{name}_{split}.txt")
            listed = _read(file)
            if images is not None and list(listed) != images:
                raise InputError(f"{file} lists other images than the lists of other classes")
            images = list(listed)
            columns[name] = np.array(list(listed.values()), np.int8)
        if not images:
            raise InputError(f"{self.name} lists no images")
        absent = np.zeros(len(images), np.int8)
        labels = np.stack([columns.get(name, absent) for name in self.class_names], axis=1)
        folder = os.fspath(root / "JPEGImages")
        self.files = [
            (os.path.join(folder, f"{image}.jpg"), row)
            for image, row in zip(images, labels, strict=True)
        ]
        check_files_exist(self)


def voc_folder(path: epath.Path) -> epath.Path:
    """Returns the folder of a year, `VOCdevkit/VOC2007`; its only one where `VOCdevkit` is given.

    Raises:
      InputError: If there is none, or several.
    """
    if path.joinpath(*_LISTS).is_dir():
        return path
    years = sorted(own for own in path.glob("VOC*") if own.joinpath(*_LISTS).is_dir())
    if len(years) == 1:
        return years[0]
    if years:
        names = ", ".join(own.name for own in years)
        raise InputError(f"{path} holds {names}; name one of these folders")
    raise InputError(
        f"{path} has no {'/'.join(_LISTS)}; it must be VOCdevkit/VOC2007, as VOC's tar files unpack"
    )


def voc_splits(root: epath.Path) -> list[str]:
    """Returns the names of the splits that have lists of classes."""
    return sorted({split for _, split in _lists(root)})


def _lists(root: epath.Path) -> list[tuple[str, str]]:
    """Returns the class and the split of each list of a class."""
    stems = [path.stem for path in root.joinpath(*_LISTS).glob("*_*.txt")]
    return [(name, split) for name, _, split in (stem.rpartition("_") for stem in stems)]


def _read(file: epath.Path) -> dict[str, int]:
    """Returns the label of each image that a list names."""
    labels: dict[str, int] = {}
    for number, line in enumerate(read_text(file).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or words[1] not in _LABELS:
            raise InputError(
                f"{file}, line {number}: must be an image and 1, 0 or -1, got {line.strip()[:80]!r}"
            )
        if words[0] in labels:
            raise InputError(f"{file}, line {number}: the image {words[0]} is listed twice")
        labels[words[0]] = _LABELS[words[1]]
    return labels
