"""A split that is made of shards: which shard an image is in, and the shard's reader."""

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from noah_jax.data.streaming.cache import LocalShard, ShardCache
from noah_jax.data.streaming.readers import Readers, openable
from noah_jax.data.streaming.shards import Shard

Reader = TypeVar("Reader")

_FILES_PER_READER = 2  # one to read, one to hold the shard's lock


class ShardSet(Generic[Reader]):
    """The shards of a split, in their order.

    Args:
      shards: The shards.
      lengths: Number of images in each.
      cache: Keeps the shards of buckets.
      read: Makes a reader of a shard that is on this machine.

    Attributes:
      shards: The shards.
      lengths: Number of images in each.
      cache: Keeps the shards of buckets.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        lengths: Sequence[int],
        cache: ShardCache,
        read: Callable[[LocalShard], Reader],
    ):
        self.shards = list(shards)
        self.lengths = tuple(map(int, lengths))
        self.cache = cache
        self._ends = list(itertools.accumulate(self.lengths))
        self._readers = Readers(self.shards, _Open(cache, read), most_open=self._most_open())

    @property
    def remote(self) -> bool:
        """Whether the shards are in a bucket."""
        return any(shard.remote for shard in self.shards)

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard.size for shard in self.shards)

    def find(self, index: int) -> tuple[int, int]:
        """Returns the number of the shard that an image is in, and its position there."""
        number = bisect.bisect_right(self._ends, index)
        return number, index - self._ends[number] + self.lengths[number]

    def reader(self, number: int) -> Reader:
        """Returns the reader of a shard, which is downloaded if it is in a bucket."""
        return self._readers[number]

    def keep_open(self, count: int) -> None:
        """Sets how many shards stay open. What is open stays in the cache."""
        self._readers.most_open = count

    def _most_open(self) -> int:
        count = len(self.shards)
        if self.remote and self.size > self.cache.capacity:
            # Half of the cache is for what is read, the other half for what is read next.
            largest = max(shard.size for shard in self.shards)
            count = max(1, self.cache.capacity // 2 // largest)
        return max(1, openable(count * _FILES_PER_READER) // _FILES_PER_READER)


@dataclasses.dataclass(frozen=True)
class _Open(Generic[Reader]):
    """Opens a shard; it is pickled and sent to worker processes."""

    cache: ShardCache
    read: Callable[[LocalShard], Reader]

    def __call__(self, shard: Shard) -> Reader:
        return self.read(self.cache.open(shard))


def shard_set(source: Any) -> ShardSet[Any] | None:
    """Returns the shards of a source, `None` if it has none."""
    return getattr(source, "shard_set", None)
