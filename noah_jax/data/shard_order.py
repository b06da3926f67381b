"""An order of images by windows of shards, for sets that do not fit where they are read from.

Each epoch draws an order of the shards. Consecutive shards form windows, and the images of a window
are shuffled. Everything is a function of seed, epoch and position, as the order of all images is.
"""

import bisect
import dataclasses
import functools
import itertools

import numpy as np

from noah_jax.data.random_streams import philox


@dataclasses.dataclass(frozen=True, eq=False)
class ShardWindows:
    """The windows of each epoch.

    Attributes:
      shard_lengths: Number of images in each shard.
      shards_per_window: Number of shards in a window. The windows of an epoch differ by at most
        one, so some may have fewer.
    """

    shard_lengths: tuple[int, ...]
    shards_per_window: int

    @property
    def per_epoch(self) -> int:
        """Windows in an epoch."""
        return -(-len(self.shard_lengths) // self.shards_per_window)

    def shards(self, seed: int, epoch: int, window: int) -> np.ndarray:
        """Returns the numbers of the shards in a window of an epoch."""
        order, _ = _epoch(self, seed, epoch)
        return order[self._edge(window) : self._edge(window + 1)]

    def window(self, seed: int, epoch: int, position: int) -> int:
        """Returns the window in which a position of an epoch is."""
        _, ends = _epoch(self, seed, epoch)
        return bisect.bisect_right(ends, position)

    def index(self, seed: int, epoch: int, position: int) -> int:
        """Returns the image at a position of an epoch."""
        _, ends = _epoch(self, seed, epoch)
        window = bisect.bisect_right(ends, position)
        start = ends[window - 1] if window else 0
        return int(_images(self, seed, epoch, window)[position - start])

    def _edge(self, window: int) -> int:
        return len(self.shard_lengths) * window // self.per_epoch


@functools.lru_cache(maxsize=8)
def _epoch(windows: ShardWindows, seed: int, epoch: int) -> tuple[np.ndarray, list[int]]:
    """Returns the order of the shards, and the position after the last image of each window."""
    lengths = np.array(windows.shard_lengths)
    words = philox(seed, epoch, purpose=1).random_raw(len(lengths))
    order = np.argsort(words, kind="stable")
    edges = [windows._edge(window + 1) for window in range(windows.per_epoch)]
    return order, np.cumsum(lengths[order])[np.array(edges) - 1].tolist()


@functools.lru_cache(maxsize=8)
def _images(windows: ShardWindows, seed: int, epoch: int, window: int) -> np.ndarray:
    """Returns the images of a window in their order."""
    starts = [0, *itertools.accumulate(windows.shard_lengths)]
    images = np.concatenate(
        [np.arange(starts[i], starts[i + 1]) for i in windows.shards(seed, epoch, window)]
    )
    words = philox(seed, epoch, purpose=2 + window).random_raw(len(images))
    return images[np.argsort(words, kind="stable")]
