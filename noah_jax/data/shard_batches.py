"""Lets the downloads of shards keep ahead of the batches that are made of them."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any, TypeVar

from noah_jax.data.sampler import Sampler
from noah_jax.data.streaming.ahead import Group, ReadAhead, following
from noah_jax.data.streaming.sets import shard_set

Placed = TypeVar("Placed")

_EVALUATION_AHEAD = 4  # shards, which an evaluation reads one after another


def with_training_shards(
    batches: Iterator[Placed], source: Any, sampler: Sampler, start_step: int
) -> Iterator[Placed]:
    """Downloads the shards of the present and the next window while batches are trained on.

    Args:
      batches: The batches of the steps after `start_step`.
      source: The decoded source of the images. Unless its shards are in a bucket, nothing is done.
      sampler: Decides which image stands where.
      start_step: Number of steps that were taken before.
    """
    shards = shard_set(getattr(source, "encoded", None))
    if shards is None or not shards.remote:
        return batches
    windows, seed = sampler.windows, sampler.seed

    def groups() -> Iterator[Group]:
        first_epoch, first = sampler.window_at(start_step)
        if windows is None:
            yield (first_epoch, 0), range(len(shards.shards))
            return
        for epoch in itertools.count(first_epoch):
            for window in range(first, windows.per_epoch):
                yield (epoch, window), windows.shards(seed, epoch, window).tolist()
            first = 0

    ahead = functools.partial(ReadAhead, shards.cache, shards.shards, groups(), ahead=1)
    return following(batches, ahead, sampler.window_at, start_step)


def with_evaluation_shards(
    batches: Iterator[Placed], source: Any, batch_size: int
) -> Iterator[Placed]:
    """Downloads the next shards while batches are evaluated.

    Args:
      batches: The batches, with every image once, in order.
      source: The decoded source of the images. Unless its shards are in a bucket, nothing is done.
      batch_size: Images of a batch over all hosts.
    """
    shards = shard_set(getattr(source, "encoded", None))
    if shards is None or not shards.remote:
        return batches
    images = sum(shards.lengths)

    def time(step: int) -> tuple[int, int]:
        return 0, shards.find(min((step + 1) * batch_size, images) - 1)[0]

    groups = (((0, number), [number]) for number in range(len(shards.shards)))
    ahead = functools.partial(
        ReadAhead, shards.cache, shards.shards, groups, ahead=_EVALUATION_AHEAD
    )
    return following(batches, ahead, time, 0)
