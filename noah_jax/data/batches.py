"""Batches: this host's share of every global batch, read ahead by Grain."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags
from grain.experimental import ThreadPrefetchIterDataset

from noah_jax.data.decoding import DamagedImageError, DamagedImages, DecodedSource
from noah_jax.data.sampler import Order
from noah_jax.data.transforms import EvalTransform, TrainTransform
from noah_jax.errors import InputError

Batch = dict[str, np.ndarray]
Put = Callable[[Batch], Any]
Loaded = tuple[Batch, list[DamagedImageError]]

# So many damaged images in a row are no accident but another kind of set.
_MAX_DAMAGED_IN_A_ROW = 100

_PART = 32  # images that a thread prepares in one go
_BATCHES_AHEAD = 2
# Of all that is done for an image Python does a small part, under a lock that the threads of
# a process share.
_THREADS_PER_PROCESS = 16


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
    num_workers: int | None = 0,
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
      num_workers: processes that share the threads; 0 is this one, `None` as many as the
        cores call for. What stands in a batch does not depend on it.
      process_index: this host's index.
      process_count: number of hosts; must divide the order's batch.

    Yields:
      What `put` gives for `image` uint8 `[local, height, width, 3]`, `label` int32 `[local]`
      (`[local, num_classes]` with several labels).
    """
    local = _local_size(order.batch_size, process_count)
    load = functools.partial(_load_for_training, source, transform, order, process_index * local)
    if num_workers is None:
        num_workers = 0 if source.cached else num_cores() // _THREADS_PER_PROCESS
    return _iterate(
        start_step, total_steps, load, local, num_threads, put, damaged, num_workers=num_workers
    )


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
      What `put` gives for `image` uint8 `[local, height, width, 3]`, `label` int32 `[local]`
      (`[local, num_classes]` with several labels),
      `mask` bool `[local]`, false for the filling and for damaged images.
    """
    local = _local_size(batch_size, process_count)
    shape = transform(np.zeros((1, 1, 3), np.uint8)).shape
    load = functools.partial(
        _load_for_evaluation, source, transform, shape, batch_size, process_index * local
    )
    steps = -(-len(source) // batch_size)
    return _iterate(0, steps, load, local, num_threads, put, damaged)


def _load_for_training(
    source: DecodedSource,
    transform: TrainTransform,
    order: Order,
    first_row: int,
    step: int,
    rows: range,
) -> Loaded:
    image = np.empty((len(rows), *transform.size, 3), np.uint8)
    label = np.empty((len(rows), *source.label_shape), np.int32)
    errors: list[DamagedImageError] = []
    count = min(len(source), _MAX_DAMAGED_IN_A_ROW)

    def drawn(row: int, offset: int = 0) -> Callable[[], tuple[np.ndarray, int]]:
        # Drawn anew each time: an image that failed may have used its choices.
        _, index, random = order.at(step, first_row + row)
        return source.drawn((index + offset) % len(source), transform, random)

    # All draws first: between two decodings Python finds the caches cold, and takes three
    # times as long for them (120 us an image instead of 40).
    for i, (row, finish) in enumerate([(row, drawn(row)) for row in rows]):
        # An image that cannot be decoded is replaced by the next one of the source, not of the
        # order, so that what stands in for it is always the same.
        for offset in range(count):
            try:
                image[i], label[i] = (drawn(row, offset) if offset else finish)()
                break
            except DamagedImageError as error:
                errors.append(error)
        else:
            raise InputError(f"{count} images in a row cannot be decoded; the last: {errors[-1]}")
    return {"image": image, "label": label}, errors


def _load_for_evaluation(
    source: DecodedSource,
    transform: EvalTransform,
    shape: tuple[int, ...],
    batch_size: int,
    first_row: int,
    step: int,
    rows: range,
) -> Loaded:
    image = np.zeros((len(rows), *shape), np.uint8)
    label = np.zeros((len(rows), *source.label_shape), np.int32)
    mask = np.zeros(len(rows), np.bool_)
    errors: list[DamagedImageError] = []
    for i, row in enumerate(rows):
        index = step * batch_size + first_row + row
        if index >= len(source):
            break
        try:
            pixels, label[i] = source[index]
        except DamagedImageError as error:
            errors.append(error)
        else:
            image[i], mask[i] = transform(pixels), True
    return {"image": image, "label": label, "mask": mask}, errors


def _local_size(batch_size: int, process_count: int) -> int:
    if batch_size % process_count:
        raise InputError(f"batch_size={batch_size} must be divisible by the {process_count} hosts")
    return batch_size // process_count


@dataclasses.dataclass(frozen=True)
class _LoadPart:
    """Part of a batch, by its number in the endless row of parts; goes to worker processes."""

    load: Callable[[int, range], Loaded]
    local: int
    parts: int

    def __call__(self, element: int) -> Loaded:
        step, part = divmod(element, self.parts)
        rows = range(part * self.local // self.parts, (part + 1) * self.local // self.parts)
        return self.load(step, rows)


def _iterate(
    start: int,
    stop: int,
    load: Callable[[int, range], Loaded],
    local: int,
    num_threads: int | None,
    put: Put,
    damaged: DamagedImages,
    *,
    num_workers: int = 0,
) -> Iterator[Any]:
    # An element is a part of a batch: Grain takes 45 us an element, and threads that prepare
    # whole batches would hold many of them in memory.
    parts = -(-local // _PART)
    threads = num_threads or num_cores()
    if num_workers:
        threads = -(-threads // num_workers)
    ahead = -(-_BATCHES_AHEAD * parts // max(1, num_workers))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead + threads)
    # Sliced by step: Grain's iterator state is never saved nor restored.
    elements = grain.MapDataset.range(start * parts, stop * parts)
    loaded = elements.map(_LoadPart(load, local, parts)).to_iter_dataset(options)
    if num_workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain hands them to the workers
        loaded = loaded.mp_prefetch(grain.MultiprocessingOptions(num_workers))

    def place(whole: Loaded) -> Any:
        batch, errors = whole
        for error in errors:
            damaged.add(error)
        return put(batch)

    joined = loaded.batch(parts, batch_fn=_join)
    return iter(ThreadPrefetchIterDataset(joined.map(place), prefetch_buffer_size=_BATCHES_AHEAD))


def _join(loaded: Sequence[Loaded]) -> Loaded:
    parts = [part for part, _ in loaded]
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return joined, [error for _, errors in loaded for error in errors]
