"""Batches: this host's share of every global batch, read ahead by Grain's threads."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from grain.experimental import ThreadPrefetchIterDataset
from PIL import Image

from noah_jax.data.decoding import DamagedImageError, DamagedImages, DecodedSource, RGBImage
from noah_jax.data.order import Order
from noah_jax.data.transforms import EvalTransform, TrainTransform

Batch = dict[str, np.ndarray]
Put = Callable[[Batch], Any]

# So many damaged images in a row are no accident but another kind of set.
_MAX_DAMAGED_IN_A_ROW = 100

_PART = 32  # images that a thread prepares in one go
_BATCHES_AHEAD = 2


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def train_batches(
    source: DecodedSource,
    transform: TrainTransform,
    order: Order,
    *,
    start_step: int,
    total_steps: int,
    num_threads: int | None,
    put: Put,
    damaged: DamagedImages,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Any]:
    """Training batches from `start_step` on; always full.

    What stands in a batch depends on the order alone: not on where the run started, nor on
    how many hosts there are. Host `h` gets the `h`-th contiguous part of each batch.

    Args:
      source: the training split.
      transform: the training transform.
      order: which image of it stands where.
      start_step: steps that were taken before.
      total_steps: where to stop.
      num_threads: reading threads; `None` is one for every core.
      put: called in a thread of its own with every batch of NumPy arrays, to place it on the
        devices; at most two wait there, and as many are being prepared.
      damaged: what to do about images that cannot be decoded: the next one of the source
        takes its place, or the error is raised.
      process_index: this host's index.
      process_count: number of hosts; must divide the order's batch.

    Yields:
      What `put` gives for `image` uint8 `[local, height, width, 3]`, `label` int32 `[local]`.
    """
    local = _local_size(order.batch_size, process_count)

    def load(step: int, row: int) -> Batch:
        _, index, rng = order.at(step, process_index * local + row)
        image, label = _next_readable(source, index, damaged)
        image = transform(image, rng)
        return {"image": image, "label": np.int32(label)}

    return _iterate(start_step, total_steps, load, local, num_threads, put)


def eval_batches(
    source: DecodedSource,
    transform: EvalTransform,
    *,
    batch_size: int,
    num_threads: int | None,
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
      num_threads: reading threads; `None` is one for every core.
      put: called in a thread of its own with every batch of NumPy arrays, to place it on the
        devices; at most two wait there, and as many are being prepared.
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
) -> tuple[RGBImage, int]:
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
    num_threads: int | None,
    put: Put,
) -> Iterator[Any]:
    # An element is a part of a batch: Grain takes 45 us an element, and threads that prepare
    # whole batches would hold many of them in memory.
    parts = -(-local // _PART)

    def load_part(element: int) -> Batch:
        step, part = divmod(element, parts)
        return _join(
            np.stack,
            [load(step, row) for row in range(part * local // parts, (part + 1) * local // parts)],
        )

    threads = num_threads or num_cores()
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=_BATCHES_AHEAD * parts + threads
    )
    # Sliced by step: Grain's iterator state is never saved nor restored.
    dataset = grain.MapDataset.range(start * parts, stop * parts).map(load_part)
    joined = dataset.to_iter_dataset(options).batch(
        parts, batch_fn=lambda x: _join(np.concatenate, x)
    )
    return iter(ThreadPrefetchIterDataset(joined.map(put), prefetch_buffer_size=_BATCHES_AHEAD))


def _join(how: Callable[[list[np.ndarray]], np.ndarray], batches: Sequence[Batch]) -> Batch:
    return {key: how([batch[key] for batch in batches]) for key in batches[0]}
