"""Finds the splits of a WebDataset and the names of its classes.

A split is a pattern of tar files, or has a name that is found

- in `_info.json` or `info.json` beside the tar files, as the sets on huggingface.co/timm have it;
- as a folder of tar files, `SPLIT/*.tar`;
- in the names of the tar files: `imagenet1k-train-0000.tar` belongs to `train`.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from noah_jax.data.streaming.cache import ShardCache
from noah_jax.data.streaming.shards import Shard, find_shards, is_pattern, list_shards
from noah_jax.data.webdataset import WebDatasetSource
from noah_jax.errors import InputError, one_line
from noah_jax.files import is_remote, read_text
from noah_jax.paths import expand_home

_INFO_FILES = ("_info.json", "info.json")
_CLASS_FILES = ("classes.txt", "labels.txt", "classes.json", "labels.json")
# The number of a shard at the end of its name, also as `-00001-of-00064`.
_NUMBER = re.compile(r"([-_.]?\d+([-_.]of[-_.]\d+)?)?\.tar")


class WebDataset:
    """The splits that `wds:PLACE` stands for.

    Args:
      place: A folder, local or remote, or a pattern of the tar files to train on, see
        `find_shards`.
      cache: Where the indices of the tar files are kept.

    Attributes:
      splits: Names of the splits that were found; "train" for a pattern.

    Raises:
      InputError: If there are no tar files.
    """

    def __init__(self, place: str, cache: ShardCache):
        self._place = place
        self._cache = cache
        self._pattern = is_pattern(place)
        self._folder = (
            expand_home(place.split("::")[0]).rpartition("/")[0] or "." if self._pattern else place
        )
        self._shards = {"train": find_shards(place)} if self._pattern else _find_splits(place)
        self.splits = sorted(self._shards)

    def open(self, split: str, class_names: Sequence[str] | None = None) -> WebDatasetSource:
        """Opens a split.

        Args:
          split: Its name, or a pattern; one without folders is in the folder of the dataset.
          class_names: Names of the classes; a file with names beside the tar files goes before.

        Raises:
          InputError: If the pattern matches nothing, or the tar files do not fit.
        """
        shards = self._shards.get(split)
        name = f"wds:{self._place}" if self._pattern and shards else f"wds:{self._place}:{split}"
        if shards is None:
            inside = "/" not in split and "::" not in split
            shards = find_shards(f"{self._folder.rstrip('/')}/{split}" if inside else split)
            name = f"wds:{split}"
        names = read_class_names(self._folder) or class_names
        return WebDatasetSource(name, shards, self._cache, names)


def read_class_names(folder: str) -> list[str] | None:
    """Reads the names of the classes from a file beside the tar files.

    It is `classes.txt` or `labels.txt` with a name a line, or `classes.json` or `labels.json` with
    a list of names, names by class index, or class indices by name.

    Returns:
      The names in the order of their indices; `None` if there is no such file.

    Raises:
      InputError: If the file is none of these.
    """
    for file in (epath.Path(expand_home(folder)) / name for name in _CLASS_FILES):
        if not file.exists():
            continue
        text = read_text(file)
        if file.suffix == ".txt":
            names: Any = [line.strip() for line in text.splitlines() if line.strip()]
        else:
            names = _names_in(_json(text, os.fspath(file)))
        if not names or not all(isinstance(name, str) for name in names):
            raise InputError(
                f"{file} must have the names of the classes: a list, or names by class index"
            )
        return names
    return None


def _names_in(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        return []
    if all(isinstance(index, int) for index in value.values()):
        value = {str(index): name for name, index in value.items()}
    return [value.get(str(index)) for index in range(len(value))]


def _find_splits(folder: str) -> dict[str, list[Shard]]:
    root = epath.Path(expand_home(folder))
    if not root.is_dir():
        raise InputError(f"data folder {folder} does not exist")
    folder = os.fspath(root)
    for name in _INFO_FILES:
        if (root / name).exists() and (splits := _listed_splits(root / name)):
            return {
                split: find_shards("::".join(f"{folder}/{file}" for file in files))
                for split, files in splits.items()
            }
    shards: dict[str, list[Shard]] = {}
    for shard in list_shards(folder, ".tar"):
        shards.setdefault(_split_in(shard.name), []).append(shard)
    if not shards:
        inner = [path.name for path in root.iterdir() if _may_be_folder(path)]
        below = {name: list_shards(f"{folder}/{name}", ".tar") for name in inner}
        shards = {name: found for name, found in below.items() if found}
    if not shards:
        raise InputError(f"{folder} holds no tar files (SPLIT-000000.tar or SPLIT/000000.tar)")
    return shards


def _may_be_folder(path: epath.Path) -> bool:
    return not path.name.startswith(".") and (is_remote(path) or path.is_dir())


def _split_in(name: str) -> str:
    """Returns the split that a tar file's name tells, "train" if it is a number alone."""
    stem = _NUMBER.sub("", name)
    return re.split(r"[-_.]", stem)[-1] or "train"


def _listed_splits(file: epath.Path) -> dict[str, list[str]]:
    content = _json(read_text(file), os.fspath(file))
    splits = content.get("splits") if isinstance(content, Mapping) else None
    if not isinstance(splits, Mapping):
        return {}
    try:
        return {name: list(map(str, split["filenames"])) for name, split in splits.items()}
    except (KeyError, TypeError) as error:
        raise InputError(f"{file} must list the filenames of each split") from error


def _json(text: str, file: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{file} is no valid JSON ({one_line(error)}); get it again") from error
