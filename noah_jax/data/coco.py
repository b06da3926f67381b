"""Images with several labels, as the annotation files of COCO's object detection list them.

The labels of an image are the categories that have an annotation in it, crowds included. Images
without annotations are left out of both splits. That is what the code of ASL, ML-Decoder and CSRA
does (`CocoDetection` in github.com/Alibaba-MIIL/ASL, `prepare_coco.py` in
github.com/Kevinz-code/CSRA), and so are the images of their results: 82,081 of the 82,783 training
images of 2014 and 40,137 of the 40,504 validation images.
"""

import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from etils import epath

from noah_jax.console import working
from noah_jax.data.folder_walk import warn_once
from noah_jax.data.source import ImageFiles, check_files_exist
from noah_jax.errors import InputError
from noah_jax.files import read_text

_FOLDER = "annotations"
_LAYOUT = "annotations/instances_train2017.json and train2017/, and so on"
_KINDS: dict[type, str] = {int: "a whole number", str: "a text"}


class CocoSource(ImageFiles):
    """The images of one split that an annotation file of COCO lists, in the order of their ids.

    Args:
      root: The folder, local or `gs://`, with `annotations/instances_SPLIT.json`, and with the
        images in `SPLIT/` or `images/SPLIT/`.
      split: Name of the split, such as "train2017".
      class_names: Names of the classes, in the order of their indices; by default the names of
        the file's categories in their order, whatever gaps their ids have.

    Raises:
      InputError: If the file is no such annotation file, an id is there twice or unknown, images
        are missing, or a category is not among `class_names`.
    """

    multi_label = True

    def __init__(self, root: epath.Path, split: str, class_names: Sequence[str] | None = None):
        file = root / _FOLDER / f"instances_{split}.json"
        self.name = os.fspath(file)
        with working(f"reading {self.name}"):
            content = _read(file)
            categories = _columns(content, "categories", {"id": int, "name": str}, self.name)
            images = _columns(content, "images", {"id": int, "file_name": str}, self.name)
            _check_unique(_optional_ids(content), "annotations", "id", self.name)
            annotations = _columns(
                content, "annotations", {"image_id": int, "category_id": int}, self.name
            )
            del content
        self.class_names = list(class_names or (name for _, name in categories))
        indices = _class_indices(categories, self.class_names, self.name)
        rows = {image: row for row, (image, _) in enumerate(sorted(images))}
        labels = np.zeros((len(rows), len(self.class_names)), np.int8)
        for number, (image, category) in enumerate(annotations):
            for key, ids, value in (("image_id", rows, image), ("category_id", indices, category)):
                if value not in ids:
                    raise InputError(
                        f"{self.name}: annotation {number} has the {key} {value}, which nothing"
                        " in the file has"
                    )
            labels[rows[image], indices[category]] = 1
        folder = _image_folder(root, split)
        self.files = [
            (os.path.join(folder, name), labels[rows[image]])
            for image, name in sorted(images)
            if labels[rows[image]].any()
        ]
        if not self.files:
            raise InputError(f"{self.name} has no annotations")
        check_files_exist(self)
        if bare := len(images) - len(self.files):
            warn_once(
                f"{self.name}: left out {bare:,} of {len(images):,} images, which have no"
                " annotations"
            )


def coco_splits(root: epath.Path) -> dict[str, str]:
    """Finds the splits of a folder that is laid out as COCO is.

    Args:
      root: The folder, local or `gs://`.

    Returns:
      The part of the annotation file's name that each split stands for. "train" and "val" stand
      for "train2017" and "val2017", or whatever year is the only one there.

    Raises:
      InputError: If there are no annotation files.
    """
    files = [path.name for path in (root / _FOLDER).glob("instances_*.json")]
    names = sorted(name.removeprefix("instances_").removesuffix(".json") for name in files)
    if not names:
        raise InputError(
            f"{root} has no {_FOLDER}/instances_*.json; it must hold {_LAYOUT}, as COCO's zip files"
            " unpack"
        )
    splits = {name: name for name in names}
    for plain in ("train", "val"):
        years = [name for name in names if re.fullmatch(rf"{plain}\d+", name)]
        if len(years) == 1:
            splits.setdefault(plain, years[0])
    return splits


def _read(file: epath.Path) -> dict[str, Any]:
    text = read_text(file)
    try:
        content = json.loads(text, object_hook=_without_outline)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is no valid JSON ({error}); get it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} must hold a JSON object, as COCO's instances_*.json do")
    return content


def _without_outline(value: dict[str, Any]) -> dict[str, Any]:
    """Drops what takes most of the memory of an annotation as soon as it is read."""
    value.pop("segmentation", None)
    return value


def _columns(
    content: dict[str, Any], key: str, fields: dict[str, type], file: str
) -> list[tuple[Any, ...]]:
    """Returns the values of each entry of a list; checks that they are there and unique ids."""
    entries = content.get(key)
    if not isinstance(entries, list):
        has = ", ".join(map(str, content)) or "nothing"
        raise InputError(
            f"{file} must have a list {key!r}, as COCO's instances_*.json have; it has {has}"
        )
    rows = []
    for number, entry in enumerate(entries):
        row = tuple(entry.get(field) for field in fields) if isinstance(entry, dict) else ()
        for value, (field, kind) in zip(row or [None] * len(fields), fields.items(), strict=True):
            if type(value) is not kind:
                raise InputError(
                    f"{file}: {field!r} of entry {number} in {key!r} must be {_KINDS[kind]}, got"
                    f" {json.dumps(value)[:80]}"
                )
        rows.append(row)
    if key != "annotations":
        for position, field in enumerate(fields):
            _check_unique((row[position] for row in rows), key, field, file)
    return rows


def _optional_ids(content: dict[str, Any]) -> Iterable[Any]:
    """Yields the ids of the annotations that have one; nobody needs them."""
    entries = content.get("annotations")
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("id"), int | str):
            yield entry["id"]


def _check_unique(values: Iterable[Any], key: str, field: str, file: str) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise InputError(f"{file}: two entries in {key!r} have the {field} {value}")
        seen.add(value)


def _class_indices(
    categories: Sequence[tuple[int, str]], class_names: Sequence[str], file: str
) -> dict[int, int]:
    """Returns the class index of each category's id."""
    positions = {name: index for index, name in enumerate(class_names)}
    unknown = [name for _, name in categories if name not in positions]
    if unknown:
        raise InputError(f"{file} has categories unknown to the training: {', '.join(unknown[:5])}")
    return {category: positions[name] for category, name in categories}


def _image_folder(root: epath.Path, split: str) -> str:
    folders = [root / split, root / "images" / split]
    for folder in folders:
        if folder.is_dir():
            return os.fspath(folder)
    raise InputError(f"the images of {split} are missing: there is no folder {folders[0]}")
