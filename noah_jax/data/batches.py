"""Batches: this host's share of every global batch, read ahead by Grain's threads."""

from collections.abc import Iterator

import grain
import numpy as np

from noah_jax.data import order
from noah_jax.data.sources import Source
from noah_jax.data.transforms import EvalTransform, TrainTransform

Batch = dict[str, np.ndarray]


def train_batches(
    source: Source,
    transform: TrainTransform,
    *,
    seed: int,
    batch_size: int,
    start_step: int,
    total_steps: int,
    num_threads: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
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
      process_index: this host's index.
      process_count: number of hosts; must divide `batch_size`.

    Yields:
      `image` uint8 `[local, height, width, 3]`, `label` int32 `[local]`.
    """
    local = _local_size(batch_size, process_count)

    def load(position: int) -> Batch:
        step, row = divmod(position, local)
        stream = step * batch_size + process_index * local + row
        epoch, index = order.index_at(seed, stream, len(source))
        data, label = source[index]
        image = transform(data, order.image_random(seed, epoch, index))
        return {"image": image, "label": np.int32(label)}

    return _iterate(start_step * local, total_steps * local, load, local, num_threads)


def eval_batches(
    source: Source,
    transform: EvalTransform,
    *,
    batch_size: int,
    num_threads: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Every image exactly once, in order; the last batch is filled with masked zeros.

    Args:
      source: the evaluation split.
      transform: the evaluation transform.
      batch_size: images per step over all hosts.
      num_threads: reading threads.
      process_index: this host's index.
      process_count: number of hosts; must divide `batch_size`.

    Yields:
      `image` uint8 `[local, height, width, 3]`, `label` int32 `[local]`, `mask` bool
      `[local]`, false for the filling.
    """
    local = _local_size(batch_size, process_count)
    filling = np.zeros_like(transform(source[0][0]))

    def load(position: int) -> Batch:
        step, row = divmod(position, local)
        index = step * batch_size + process_index * local + row
        if index >= len(source):
            return {"image": filling, "label": np.int32(0), "mask": np.bool_(False)}
        data, label = source[index]
        return {"image": transform(data), "label": np.int32(label), "mask": np.bool_(True)}

    steps = -(-len(source) // batch_size)
    return _iterate(0, steps * local, load, local, num_threads)


def _local_size(batch_size: int, process_count: int) -> int:
    if batch_size % process_count:
        raise ValueError(f"batch_size={batch_size} must be divisible by the {process_count} hosts")
    return batch_size // process_count


def _iterate(start, stop, load, local, num_threads) -> Iterator[Batch]:
    # Batched inside the threads: stacking a batch of ImageNet takes the main thread 10 ms.
    # Sliced by position: Grain's iterator state is never saved nor restored.
    dataset = grain.MapDataset.range(start, stop).map(load).batch(local)
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads)
    return iter(dataset.to_iter_dataset(options))
