"""Makes training batches with DALI: the same images, boxes and flips as `noah_jax.data.batches`."""

import functools
from collections.abc import Callable, Iterator
from typing import TypeVar

from jax.sharding import Mesh

from noah_jax import console, distributed
from noah_jax.data.batch import Batch
from noah_jax.data.batches import (
    check_readers,
    local_rows,
    num_cores,
    read_ahead,
)
from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.dali.decoder import Decoder
from noah_jax.data.dali.encoded import EncodedBatch, join, load
from noah_jax.data.decoding import DecodedSource
from noah_jax.data.sampler import Sampler
from noah_jax.data.shard_batches import with_training_shards
from noah_jax.data.transforms import TrainTransform

Placed = TypeVar("Placed")  # what `put` makes of a batch

# Batches that DALI has under way at once: one on the way into the decoder, one in it.
_DEPTH = 2
# What is left to the host is mostly Python's own work, under a lock that all threads of a process
# share.
_CORES_PER_PROCESS = 4


def train_batches(
    source: DecodedSource,
    transform: TrainTransform,
    sampler: Sampler,
    *,
    start_step: int,
    total_steps: int,
    num_threads: int | None,
    mesh: Mesh,
    put: Callable[[Batch], Placed],
    corrupt_images: CorruptImages,
    num_workers: int | None = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Placed]:
    """Makes the training batches from `start_step` on, all of them full.

    The host's threads read the files and draw; DALI decodes, crops and flips, on each device of
    the mesh that device's own rows. Nothing is carried from one step to the next, so that a run
    can be resumed at any step.

    Args:
      source: The training images; its cache is not used.
      transform: The training transform, with `on_device` set if it has colour jitter or
        RandAugment.
      sampler: Decides which image stands where.
      start_step: Number of steps that were taken before.
      total_steps: Step at which to stop.
      num_threads: Number of the host's reading threads, and of DALI's; `None` for one per core.
      mesh: The devices: NVIDIA GPUs, or the CPU, where DALI's CPU backend decodes.
      put: Places the labels and draws of a batch on the devices; its images are there already.
      corrupt_images: Counts the images that cannot be decoded. The next image of the source
        replaces such an image, or its error is raised.
      num_workers: Number of processes that share the reading threads; 0 for this process alone,
        `None` for as many as the number of cores suggests.
      process_index: Index of this host.
      process_count: Number of hosts; must divide the sampler's batch size.

    Yields:
      The result of `put` for each batch: `image` uint8 `[batch, height, width, 3]`, shared by the
      mesh, `label` and `draws` as in `noah_jax.data.batches.train_batches`.

    Raises:
      InputError: If a number of threads, processes or hosts does not fit, or DALI does not decode
        on such devices.
      LoaderError: If DALI fails.
    """
    check_readers(num_threads=num_threads, num_workers=num_workers)
    rows = local_rows(sampler.batch_size, process_count)
    load_rows = functools.partial(load, source, transform, sampler, process_index * rows)
    num_threads = num_threads or num_cores()
    steps = range(start_step, total_steps)

    def load_row(step: int, row: int, refused: set[int]) -> EncodedBatch:
        image, errors = load_rows(step, (row,), refused)
        for error in errors:
            corrupt_images.add(error)
        return image

    decoder = Decoder(
        transform,
        distributed.row_devices(mesh),
        rows=rows,
        num_threads=num_threads,
        depth=max(1, min(_DEPTH, len(steps))),
        load_row=load_row,
        describe=source.encoded.describe,
    )
    if not decoder.on_gpu:
        console.warn("data.loader=dali: JAX finds no GPU, so DALI decodes on the CPU")
    encoded = read_ahead(
        steps,
        load_rows,
        join,
        rows,
        num_threads,
        lambda batch: batch,
        corrupt_images,
        num_workers=num_cores() // _CORES_PER_PROCESS if num_workers is None else num_workers,
    )
    decoded = _decoded(decoder, steps, encoded, mesh, put)
    return with_training_shards(decoded, source, sampler, start_step)


def _decoded(
    decoder: Decoder,
    steps: range,
    encoded: Iterator[EncodedBatch],
    mesh: Mesh,
    put: Callable[[Batch], Placed],
) -> Iterator[Placed]:
    def collect() -> Placed:
        rows, shards = decoder.collect()
        batch: Batch = {
            "image": distributed.join_shards(shards, mesh),
            "label": rows.columns["label"],
        }
        if "draws" in rows.columns:
            batch["draws"] = rows.columns["draws"]
        return put(batch)

    for step, rows in zip(steps, encoded, strict=True):
        decoder.submit(step, rows)
        if decoder.pending == decoder.depth:
            yield collect()
    while decoder.pending:
        yield collect()
