"""WebDataset shards: tar files whose samples are an image and its label, `KEY.jpg` and `KEY.cls`.

The `webdataset` package reads shards from their beginning, and `wids` needs PyTorch and a list of
lengths that few sets have. Here an index of each shard is read once from its headers and kept in a
file, so that single images are read as from any other source, in the order that a run's sampler
says.
"""

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from noah_jax.console import working
from noah_jax.data.folder_walk import first_names, warn_once
from noah_jax.data.source import Label
from noah_jax.data.streaming.ahead import one_by_one
from noah_jax.data.streaming.cache import LocalShard, ShardCache
from noah_jax.data.streaming.sets import ShardSet
from noah_jax.data.streaming.shards import Shard
from noah_jax.data.tar_index import TarIndex, index_tar, load_index
from noah_jax.errors import InputError, NoahError, UnreadableImageError, one_line


class WebDatasetSource:
    """The images of a split that is stored as tar files, in their order.

    Args:
      name: Name of the split, for messages.
      shards: The tar files.
      cache: Where the indices of the tar files are kept.
      class_names: Names of the classes, in the order of their indices; by default the labels that
        the files have: sorted if they are texts, else every number up to the highest.

    Attributes:
      shard_set: The tar files.
      shard_lengths: Number of images in each.
      fingerprint: A SHA-256 of the images' names and labels, and of the shards' lengths.

    Raises:
      InputError: If a file is no tar file or has no images, no image has a label, or a label is not
        among `class_names`.
    """

    def __init__(
        self,
        name: str,
        shards: Sequence[Shard],
        cache: ShardCache,
        class_names: Sequence[str] | None = None,
    ):
        self.name = name
        indices = _read_indices(shards, cache, name)
        lengths = [len(index.offset) for index in indices]
        if not any(lengths):
            raise InputError(f"{name} holds no images; a sample is KEY.jpg and KEY.cls or KEY.json")
        self.shard_set = ShardSet(shards, lengths, cache, _itself)
        self.shard_lengths = self.shard_set.lengths
        self._offset, self._size, self._key, labels = map(
            np.concatenate, zip(*indices, strict=True)
        )
        self.class_names, self._classes, self._which, self.multi_label = _number(
            labels, class_names, name
        )
        self.fingerprint = self._fingerprint(labels)

    def __len__(self) -> int:
        return len(self._offset)

    def __getitem__(self, index: int) -> tuple[bytes, Label]:
        number, _ = self.shard_set.find(index)
        try:
            shard = self.shard_set.reader(number)
            data = shard.read(int(self._offset[index]), int(self._size[index]))
        except NoahError:
            raise  # A full disk, which is an OSError too, is no fault of the image.
        except OSError as error:
            reason = error.strerror or one_line(error, 200)
            raise UnreadableImageError(self.describe(index), reason) from error
        return data, self._label(index)

    def _label(self, index: int) -> Label:
        classes = self._classes[self._which[index]]
        if not self.multi_label:
            return classes[0] if classes else -1
        labels = np.zeros(len(self.class_names), np.int8)
        labels[classes] = 1
        return labels

    @property
    def images_by_class(self) -> list[int] | None:
        """Number of images of each class; `None` if an image may have several."""
        if self.multi_label:
            return None
        counts = [0] * len(self.class_names)
        for classes, count in zip(self._classes, np.bincount(self._which), strict=True):
            for class_index in classes:
                counts[class_index] += int(count)
        return counts

    def describe(self, index: int) -> str:
        number, _ = self.shard_set.find(index)
        return f"{self._path(index)} in {self.shard_set.shards[number].path}"

    def file_name(self, index: int) -> str:
        return os.path.basename(self._path(index))

    def _path(self, index: int) -> str:
        return self._key[index].decode("utf-8", "surrogateescape")

    def _fingerprint(self, labels: np.ndarray) -> str:
        checksum = hashlib.sha256(json.dumps(self.shard_set.lengths).encode())
        for key, label in zip(self._key, labels, strict=True):
            checksum.update(b"%s\t%s\n" % (key, label))
        return checksum.hexdigest()


def _itself(shard: LocalShard) -> LocalShard:
    """Reads a tar file by the places that the index has."""
    return shard


def _read_indices(shards: Sequence[Shard], cache: ShardCache, name: str) -> list[TarIndex]:
    """Returns the index of each shard. A shard of a bucket is downloaded for it, once."""

    def make(number: int, shard: Shard) -> TarIndex:
        ahead.reached((0, number))
        local = cache.open(shard)  # Nobody removes it while this function has it.
        return index_tar(local.path, shard.path)

    unknown = [n for n, s in enumerate(shards) if s.remote and not cache.has_index(s)]
    if unknown:
        size = sum(shards[number].size for number in unknown) / 10**9
        warn_once(
            f"{name}: {len(unknown):,} shards have no index here yet, so all of their {size:,.1f}"
            " GB are downloaded once before the first step"
        )
    with (
        working(f"reading the index of {name}", len(shards), "shards") as work,
        one_by_one(cache, shards, unknown) as ahead,
    ):
        indices = []
        for number, shard in enumerate(shards):
            indices.append(
                load_index(cache.index_file(shard), functools.partial(make, number, shard))
            )
            work.advance(1)
    return indices


def _number(
    labels: np.ndarray, class_names: Sequence[str] | None, name: str
) -> tuple[list[str], list[list[int]], np.ndarray, bool]:
    """Turns labels into class indices.

    Args:
      labels: The labels as JSON, see `TarIndex`.
      class_names: See `WebDatasetSource`.
      name: How messages call the images.

    Returns:
      The names of the classes; a list of class indices for each different label, empty if it is
      none; which of these each image has; and whether an image may have several.
    """
    different, which = np.unique(labels, return_inverse=True)
    values = [json.loads(label) if label else [] for label in different]
    several = any(isinstance(v, list) for v, label in zip(values, different, strict=True) if label)
    lists = [value if isinstance(value, list) else [value] for value in values]
    # As TFDS has -1 where there is no label.
    lists = [[x for x in items if isinstance(x, str) or x >= 0] for items in lists]
    seen = {item for items in lists for item in items}
    if not seen:
        raise InputError(
            f"{name} has no labels; a sample's is a number in KEY.cls, or 'label' in KEY.json"
        )
    kinds = {type(item) for item in seen}
    if len(kinds) > 1:
        some = ", ".join(sorted(map(repr, seen))[:5])
        raise InputError(f"{name} has numbers and texts as labels, such as {some}; use one kind")
    if kinds == {int}:
        names = list(class_names or map(str, range(max(seen) + 1)))
        positions: dict[Any, int] = {index: index for index in range(len(names))}
    else:
        names = list(class_names or sorted(seen))
        positions = {word: index for index, word in enumerate(names)}
    if unknown := sorted(str(item) for item in seen if item not in positions):
        raise InputError(
            f"{name} has labels that are none of its {len(names):,} classes: {first_names(unknown)}"
        )
    return names, [[positions[item] for item in items] for items in lists], which, several
