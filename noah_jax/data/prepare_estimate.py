"""Tells how large a dataset will be and how long it takes to write, from a sample of its images."""

import dataclasses
import itertools
import pathlib
import shutil
import time
from collections.abc import Iterator, Sequence

import tensorflow_datasets as tfds

from noah_jax.console import duration, working
from noah_jax.data.batches import num_cores
from noah_jax.data.prepare import Split, partial_folder
from noah_jax.errors import InputError

_SAMPLE = 64  # images of a split, from so many
_SHARDS = 8  # shards all over it
_SURE = 0.9  # so much of an estimate is needed at least; a sample's mean is off by a few percent


@dataclasses.dataclass(frozen=True)
class SplitEstimate:
    """What a sample of a split's images tells of the whole.

    Attributes:
      split: The split.
      sampled: Number of images in the sample.
      changed: Number of those that change.
      before: Mean of the images' bytes as they are.
      after: Mean of the images' bytes as they will be, both with their labels.
      seconds: Mean of the time that a core takes to change an image.
    """

    split: Split
    sampled: int
    changed: int
    before: float
    after: float
    seconds: float

    @property
    def num_bytes(self) -> float:
        """Bytes of the split as it will be."""
        return self.split.num_images * self.after

    def describe(self) -> str:
        """Says in a line what will happen to the split."""
        images = self.split.num_images
        line = f"{self.split.name}: {images:,} images, "
        if self.split.change is None:
            return f"{line}as they are, about {_size(self.num_bytes)}"
        cores = num_cores()
        return (
            f"{line}{self.changed} of a sample of {self.sampled} change, {_size(self.before)} ->"
            f" {_size(self.after)} an image; about {_size(images * self.before)} ->"
            f" {_size(self.num_bytes)} in all, {duration(images * self.seconds / cores)} on"
            f" {cores} core(s)"
        )


def estimate_splits(splits: Sequence[Split]) -> list[SplitEstimate]:
    """Estimates the size of each split and the time that its images take to change."""
    with working("estimating the size"):
        return [_estimate(split) for split in splits]


def check_room(
    info: tfds.core.DatasetInfo, estimates: Sequence[SplitEstimate], data_dir: str
) -> None:
    """Checks that a dataset fits on the disk.

    Args:
      info: Description of the dataset.
      estimates: The estimate of each split.
      data_dir: The folder for datasets.

    Raises:
      InputError: If less is free than nearly all of what is needed.
    """
    partial = partial_folder(info, data_dir)
    there = sum(path.stat().st_size for path in partial.glob("*")) if partial.is_dir() else 0
    parent = next((path for path in partial.parents if path.is_dir()), pathlib.Path())
    needed = sum(estimate.num_bytes for estimate in estimates)
    free = shutil.disk_usage(parent).free + there
    if _SURE * needed > free:
        raise InputError(
            f"{info.name} needs about {_size(needed)}, and {data_dir} has {_size(free)} for it;"
            " choose another --data-dir, or a smaller --max-side"
        )


def _estimate(split: Split) -> SplitEstimate:
    sample = list(_sample(split))
    if not sample:
        return SplitEstimate(split, 0, 0, 0.0, 0.0, 0.0)
    changed, seconds = sample, 0.0
    if split.change is not None:
        split.change(sample[0])  # the first call compiles
        start = time.perf_counter()
        changed = [split.change(record) for record in sample]
        seconds = (time.perf_counter() - start) / len(sample)
    before, after = (sum(map(len, records)) / len(sample) for records in (sample, changed))
    differing = sum(a is not b for a, b in zip(sample, changed, strict=True))
    return SplitEstimate(split, len(sample), differing, before, after, seconds)


def _sample(split: Split) -> Iterator[bytes]:
    """Yields some records of shards all over the split."""
    count = min(_SHARDS, len(split.shards))
    for i in range(count):
        records = split.shards[len(split.shards) * i // count]()
        yield from itertools.islice(records, -(-_SAMPLE // count))


def _size(num_bytes: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes / 1e3:.1f} kB"
