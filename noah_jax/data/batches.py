"""Makes batches on the host: this host's rows of every global batch, read ahead in threads.

Grain is used only as a pool of threads and processes (`MapDataset.range(...).map(...)`): which
image stands where is decided by `noah_jax.data.sampler`, and Grain's iterator state is never
saved or restored.
"""

import dataclasses
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar, cast

import grain
import numpy as np
from absl import flags
from grain.experimental import ThreadPrefetchIterDataset

from noah_jax.data.batch import Batch
from noah_jax.data.corrupt import CorruptImages, first_usable
from noah_jax.data.decoding import DecodedSource, FinishExample
from noah_jax.data.reused_memory import ReusedMemory
from noah_jax.data.sampler import Sampler
from noah_jax.data.shard_batches import with_evaluation_shards, with_training_shards
from noah_jax.data.source import Label
from noah_jax.data.transforms import EvalTransform, TrainTransform, Transformed
from noah_jax.errors import CorruptImageError, InputError

Placed = TypeVar("Placed")  # what `put` makes of a batch
Chunk = TypeVar("Chunk")  # a part of a batch, or a whole one
# A chunk, and the images in it that could not be decoded.
Loaded = tuple[Chunk, list[CorruptImageError]]
LoadChunk = Callable[[int, range], Loaded[Chunk]]  # takes the step and this host's rows

_CHUNK = 32  # images that a thread prepares in one go
_BATCHES_AHEAD = 2
# A small part of the work on an image is Python's, under a lock that all threads of a process
# share; more threads than this wait for it.
_THREADS_PER_PROCESS = 16


def num_cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_readers(*, num_threads: int | None, num_workers: int | None) -> None:
    """Checks the numbers of threads and processes that prepare images.

    Raises:
      InputError: If there are fewer than 1 thread or 0 processes.
    """
    if num_threads is not None and num_threads < 1:
        raise InputError(f"data.num_threads must be at least 1, got {num_threads}")
    if num_workers is not None and num_workers < 0:
        raise InputError(f"data.num_workers must be at least 0, got {num_workers}")


def train_batches(
    source: DecodedSource,
    transform: TrainTransform,
    sampler: Sampler,
    *,
    start_step: int,
    total_steps: int,
    num_threads: int | None,
    put: Callable[[Batch], Placed],
    corrupt_images: CorruptImages,
    num_workers: int | None = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Placed]:
    """Makes the training batches from `start_step` on, all of them full.

    The contents of a batch depend on the sampler alone, not on where the run started or how
    many hosts there are. Host `h` gets the `h`-th contiguous block of rows of each batch.

    Args:
      source: The training images.
      transform: The training transform.
      sampler: Decides which image stands where.
      start_step: Number of steps that were taken before.
      total_steps: Step at which to stop.
      num_threads: Number of reading threads; `None` for one per core.
      put: Places a batch of NumPy arrays on the devices. It is called in a thread of its own; at
        most two placed batches wait there, and two more are being prepared.
      corrupt_images: Counts the images that cannot be decoded. The next image of the source
        replaces such an image, or its error is raised.
      num_workers: Number of processes that share the threads; 0 for this process alone, `None`
        for as many as the number of cores suggests. The contents of a batch do not depend on it.
      process_index: Index of this host.
      process_count: Number of hosts; must divide the sampler's batch size.

    Yields:
      The result of `put` for each batch: `image` uint8 `[local, height, width, 3]` and `label`
      int32 `[local]` (`[local, num_classes]` with several labels), where `local` is the number
      of this host's rows.

    Raises:
      InputError: If a number of threads, processes or hosts does not fit.
    """
    check_readers(num_threads=num_threads, num_workers=num_workers)
    local_size = local_rows(sampler.batch_size, process_count)
    if num_workers is None:
        num_workers = 0 if source.cached else num_cores() // _THREADS_PER_PROCESS
    first_row = process_index * local_size
    load = _LoadBatch(
        functools.partial(_new_training_batch, source, transform, ReusedMemory()),
        functools.partial(_fill_for_training, source, transform, sampler, first_row),
        local_size,
        shared=num_workers == 0,
    )
    batches = read_ahead(
        range(start_step, total_steps),
        load,
        load.join,
        local_size,
        num_threads,
        put,
        corrupt_images,
        num_workers=num_workers,
    )
    return with_training_shards(batches, source, sampler, start_step)


def eval_batches(
    source: DecodedSource,
    transform: EvalTransform,
    *,
    batch_size: int,
    num_threads: int | None,
    put: Callable[[Batch], Placed],
    corrupt_images: CorruptImages,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Placed]:
    """Makes batches with every image once, in order; the last one is padded with masked zeros.

    A corrupt image is masked too: another image in its place would count twice.

    Args:
      source: The evaluation images.
      transform: The evaluation transform.
      batch_size: Images per step over all hosts.
      num_threads: Number of reading threads; `None` for one per core.
      put: Places a batch of NumPy arrays on the devices, see `train_batches`.
      corrupt_images: Counts the images that cannot be decoded. Such an image is masked, or its
        error is raised.
      process_index: Index of this host.
      process_count: Number of hosts; must divide `batch_size`.

    Yields:
      The result of `put` for each batch: `image` and `label` as in `train_batches`, and `mask`
      bool `[local]`, false for padding and corrupt images.

    Raises:
      InputError: If the number of threads or hosts does not fit.
    """
    check_readers(num_threads=num_threads, num_workers=0)
    local_size = local_rows(batch_size, process_count)
    shape = transform(np.zeros((1, 1, 3), np.uint8)).shape
    first_row = process_index * local_size
    load = _LoadBatch(
        functools.partial(_new_evaluation_batch, source, shape),
        functools.partial(_fill_for_evaluation, source, transform, batch_size, first_row),
        local_size,
        shared=True,
    )
    steps = range(-(-len(source) // batch_size))
    batches = read_ahead(steps, load, load.join, local_size, num_threads, put, corrupt_images)
    return with_evaluation_shards(batches, source, batch_size)


def _new_training_batch(
    source: DecodedSource, transform: TrainTransform, memory: ReusedMemory, rows: int
) -> Batch:
    batch: Batch = {
        "image": memory.empty((rows, *transform.size, 3), np.uint8),
        "label": np.empty((rows, *source.label_shape), np.int32),
    }
    if transform.draw_shape is not None:
        batch["draws"] = np.empty((rows, *transform.draw_shape), np.float32)
    return batch


def _fill_for_training(
    source: DecodedSource,
    transform: TrainTransform,
    sampler: Sampler,
    first_row: int,
    step: int,
    rows: range,
    batch: Batch,
) -> list[CorruptImageError]:
    errors: list[CorruptImageError] = []
    image: Any = batch["image"]

    def start(row: int, offset: int = 0) -> FinishExample:
        # A generator that a failed image has used is not used again: each call makes a new one.
        _, index, random = sampler.at(step, first_row + row)
        return source.start((index + offset) % len(source), transform, random)

    # All images are started before the first is finished, see `noah_jax.data.decoding`.
    started = [start(row) for row in rows]
    for i, row in enumerate(rows):

        def use(offset: int, i: int = i, row: int = row) -> tuple[Transformed, Label]:
            return (start(row, offset) if offset else started[i])(image[i])

        drawn, batch["label"][i] = first_usable(use, len(source), errors)
        if drawn.draws is not None:
            batch["draws"][i] = drawn.draws
    return errors


def _new_evaluation_batch(source: DecodedSource, shape: tuple[int, ...], rows: int) -> Batch:
    return {
        "image": np.zeros((rows, *shape), np.uint8),
        "label": np.zeros((rows, *source.label_shape), np.int32),
        "mask": np.zeros(rows, np.bool_),
    }


def _fill_for_evaluation(
    source: DecodedSource,
    transform: EvalTransform,
    batch_size: int,
    first_row: int,
    step: int,
    rows: range,
    batch: Batch,
) -> list[CorruptImageError]:
    errors: list[CorruptImageError] = []
    for i, row in enumerate(rows):
        index = step * batch_size + first_row + row
        if index >= len(source):
            break
        try:
            pixels, batch["label"][i] = source[index]
        except CorruptImageError as error:
            errors.append(error)
        else:
            batch["image"][i] = transform(pixels)
            batch["mask"][i] = True
    return errors


class _LoadBatch:
    """Loads the chunks of batches, which write into the same arrays if they share a process.

    Args:
      new: Makes the arrays of a number of rows.
      fill: Takes a step, this host's rows and arrays of so many rows, which it fills; returns the
        images that could not be decoded.
      local_size: Number of this host's rows of a batch.
      shared: Whether all chunks are loaded by threads of this process, so that each returns the
        whole batch. Otherwise a chunk is returned alone, because it goes to another process.
    """

    def __init__(
        self,
        new: Callable[[int], Batch],
        fill: Callable[[int, range, Batch], list[CorruptImageError]],
        local_size: int,
        *,
        shared: bool,
    ):
        self._new, self._fill, self._local_size = new, fill, local_size
        self._lock = threading.Lock() if shared else None
        # Batches by step whose last chunk has not begun, and how many rows have.
        self._begun: dict[int, tuple[Batch, int]] = {}

    def __call__(self, step: int, rows: range) -> Loaded[Batch]:
        if self._lock is None:
            batch = self._new(len(rows))
            return batch, self._fill(step, rows, batch)
        with self._lock:
            if step not in self._begun:
                self._begun[step] = self._new(self._local_size), 0
            batch, begun = self._begun.pop(step)
            if begun + len(rows) < self._local_size:
                self._begun[step] = batch, begun + len(rows)
        part = {key: v[rows.start : rows.stop] for key, v in cast(Any, batch).items()}
        return batch, self._fill(step, rows, cast(Batch, part))

    def join(self, chunks: Sequence[Batch]) -> Batch:
        """Joins a batch's chunks."""
        if self._lock is not None:
            return chunks[0]  # each is the whole batch
        whole = self._new(self._local_size)
        for key, values in cast(Any, whole).items():
            np.concatenate([chunk[key] for chunk in cast(Any, chunks)], out=values)
        return whole


def local_rows(batch_size: int, process_count: int) -> int:
    """Returns the number of rows of a batch that each host has.

    Raises:
      InputError: If the hosts do not divide the batch.
    """
    if batch_size % process_count:
        raise InputError(f"batch_size={batch_size} must be divisible by the {process_count} hosts")
    return batch_size // process_count


@dataclasses.dataclass(frozen=True)
class _LoadElement(Generic[Chunk]):
    """Loads a chunk by its number in the endless row of all batches' chunks.

    It is pickled and sent to worker processes.
    """

    load: LoadChunk[Chunk]
    local_size: int
    chunks: int  # per batch

    def __call__(self, element: int) -> Loaded[Chunk]:
        step, chunk = divmod(element, self.chunks)
        first = chunk * self.local_size // self.chunks
        end = (chunk + 1) * self.local_size // self.chunks
        return self.load(step, range(first, end))


def read_ahead(
    steps: range,
    load: LoadChunk[Chunk],
    join: Callable[[Sequence[Chunk]], Chunk],
    local_size: int,
    num_threads: int | None,
    put: Callable[[Chunk], Placed],
    corrupt_images: CorruptImages,
    *,
    num_workers: int = 0,
) -> Iterator[Placed]:
    """Loads batches in threads or processes, ahead of their use.

    Args:
      steps: The steps whose batches are wanted.
      load: Loads a chunk of a batch. With worker processes it is pickled and sent there.
      join: Joins a batch's chunks.
      local_size: Number of this host's rows.
      num_threads: Number of reading threads; `None` for one per core.
      put: Takes a whole batch, in a thread of its own; at most two of its results wait.
      corrupt_images: Counts the images that cannot be used.
      num_workers: Number of processes that share the threads; 0 for this process alone.

    Yields:
      The result of `put` for each batch, in the order of the steps.
    """
    # An element is a chunk of a batch: Grain takes 45 us per element, too long for single images,
    # and threads that prepare whole batches would hold many of them in memory.
    chunks = -(-local_size // _CHUNK)
    threads = num_threads or num_cores()
    if num_workers:
        threads = -(-threads // num_workers)
    ahead = -(-_BATCHES_AHEAD * chunks // max(1, num_workers))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead + threads)
    elements = grain.MapDataset.range(steps.start * chunks, steps.stop * chunks)
    loaded = elements.map(_LoadElement(load, local_size, chunks)).to_iter_dataset(options)
    if num_workers:
        # If a second Ctrl-C ends the run at once, Python's tracker frees the shared memory, and
        # would warn that it had to.
        sys.warnoptions.append("ignore:resource_tracker:UserWarning")
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain passes the flags on to its workers
        loaded = loaded.mp_prefetch(
            grain.MultiprocessingOptions(num_workers), worker_init_fn=_ignore_ctrl_c
        )

    def join_loaded(loaded: Sequence[Loaded[Chunk]]) -> Loaded[Chunk]:
        return join([chunk for chunk, _ in loaded]), [e for _, errors in loaded for e in errors]

    def place(whole: Loaded[Chunk]) -> Placed:
        batch, errors = whole
        for error in errors:
            corrupt_images.add(error)
        return put(batch)

    joined = loaded.batch(chunks, batch_fn=join_loaded)
    return iter(ThreadPrefetchIterDataset(joined.map(place), prefetch_buffer_size=_BATCHES_AHEAD))


def _ignore_ctrl_c(index: int, count: int) -> None:
    """Leaves Ctrl-C, which a terminal sends to all processes, to the one that trains."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
