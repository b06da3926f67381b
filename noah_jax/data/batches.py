"""Batches: this host's share of every global batch, read ahead by Grain's threads."""

from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from grain.experimental import ThreadPrefetchIterDataset
from PIL import Image

from noah_jax.data import order
from noah_jax.data.decoding import DamagedImageError, DamagedImages, DecodedSource
from noah_jax.data.transforms import EvalTransform, TrainTransform

Batch = dict[str, np.ndarray]
Put = Callable[[Batch], Any]

# So many damaged images in a row are no accident but another kind of set.
_MAX_DAMAGED_IN_A_ROW = 100


def train_batches(
    source: DecodedSource,
    transform: TrainTransform,
    *,
    seed: int,
    batch_size: int,
    start_step: int,
    total_steps: int,
    num_threads: int,
    put: Put,
    damaged: DamagedImages,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Any]:
    """Training batches from `start_step` on; always full, epochs join within a batch.

    What stands at a position depends on the seed alone: not on where the run started, nor
    on how many hosts there are. Host `h` gets the `h`-th contiguous part of each batch.

    Args:
      source: the training split.
      transform: the training transform.
      seed: seed of the order and of the augmentation.
      batch_size: images per step over all hosts.
      start_step: steps that were taken before.
      total_steps: where to stop.
      num_threads: reading threads.
      put: called in a thread of its own with every batch of NumPy arrays, to place it on the
        devices; at most two wait there.
      damaged: what to do about images that cannot be decoded: the next one of the source
        takes its place, or the error is raised.
      process_index: this host's index.
      process_count: number of hosts; must divide `batch_size`.

    Yields:
      What `put` gives for `image` uint8 `[local, height, width, 3]`, `label` int32 `[local]`.
    """
    local = _local_size(batch_size, process_count)

    def load(step: int, row: int) -> Batch:
        position = step * batch_size + process_index * local + row
        epoch, index = order.index_at(seed, position, len(source))
        image, label = _next_readable(source, index, damaged)
        image = transform(image, order.image_random(seed, epoch, index))
        return {"image": image, "label": np.int32(label)}

    return _iterate(start_step, total_steps, load, local, num_threads, put)


def eval_batches(
    source: DecodedSource,
    transform: EvalTransform,
    *,
    batch_size: int,
    num_threads: int,
    put: Put,
    damaged: DamagedImages,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Any]:
    """Every image exactly once, in order; the last batch is filled with masked zeros.

    A damaged image is masked too: another in its place would count twice.

    Args:
      source: the evaluation split.
      transform: the evaluation transform.
      batch_size: images per step over all hosts.
      num_threads: reading threads.
      put: called in a thread of its own with every batch of NumPy arrays, to place it on the
        devices; at most two wait there.
      damaged: what to do about images that cannot be decoded: they are masked, or the
        error is raised.
      process_index: this host's index.
      process_count: number of hosts; must divide `batch_size`.

    Yields:
      What `put` gives for `image` uint8 `[local, height, width, 3]`, `label` int32 `[local]`,
      `mask` bool `[local]`, false for the filling and for damaged images.
    """
    local = _local_size(batch_size, process_count)
    blank = np.zeros_like(transform(Image.new("RGB", (1, 1))))
    filling = {"image": blank, "label": np.int32(0), "mask": np.bool_(False)}

    def load(step: int, row: int) -> Batch:
        index = step * batch_size + process_index * local + row
        if index >= len(source):
            return filling
        try:
            image, label = source[index]
        except DamagedImageError as error:
            damaged.add(error)
            return filling
        return {"image": transform(image), "label": np.int32(label), "mask": np.bool_(True)}

    steps = -(-len(source) // batch_size)
    return _iterate(0, steps, load, local, num_threads, put)


def _next_readable(
    source: DecodedSource, index: int, damaged: DamagedImages
) -> tuple[Image.Image, int]:
    """The first image from `index` on that can be decoded, and its label."""
    # Goes by the source's order, so that what stands in for an image is always the same.
    count = min(len(source), _MAX_DAMAGED_IN_A_ROW)
    for offset in range(count):
        try:
            return source[(index + offset) % len(source)]
        except DamagedImageError as error:
            damaged.add(error)
            last = error
    raise ValueError(f"{count} images in a row cannot be decoded; the last: {last}")


def _local_size(batch_size: int, process_count: int) -> int:
    if batch_size % process_count:
        raise ValueError(f"batch_size={batch_size} must be divisible by the {process_count} hosts")
    return batch_size // process_count


def _iterate(
    start: int,
    stop: int,
    load: Callable[[int, int], Batch],
    local: int,
    num_threads: int,
    put: Put,
) -> Iterator[Any]:
    def load_batch(step: int) -> Batch:
        rows = [load(step, row) for row in range(local)]
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

    # An element is a whole batch: Grain takes 45 us an element, and stacking a batch of
    # ImageNet would take the main thread 10 ms. Sliced by step: Grain's iterator state is
    # never saved nor restored.
    dataset = grain.MapDataset.range(start, stop).map(load_batch)
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads)
    placed = dataset.to_iter_dataset(options).map(put)
    return iter(ThreadPrefetchIterDataset(placed, prefetch_buffer_size=2))
