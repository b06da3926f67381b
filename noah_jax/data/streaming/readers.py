"""Keeps the readers of shard files open, the ones that were used last."""

import collections
import contextlib
import resource
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from noah_jax.data.streaming.shards import Shard

Reader = TypeVar("Reader")

_OTHER_FILES = 512  # that a process may have open besides shards


def openable(count: int) -> int:
    """Lets this process have more files open, as far as the system allows.

    Args:
      count: How many shards' files it would open at once.

    Returns:
      How many of them it may.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = count + _OTHER_FILES
    if soft == unlimited or soft >= wanted:
        return count
    allowed = wanted if hard == unlimited else min(wanted, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    return max(1, min(count, soft - _OTHER_FILES))


class Readers(Generic[Reader]):
    """Opens shards when they are first read, and closes those that were not read for longest.

    It may be used by several threads and sent to other processes, which open their own.

    Args:
      shards: The shards.
      open_reader: Opens a shard. What it returns closes itself when nobody has it any more, so
        that a thread may go on reading what was just closed here.
      most_open: How many stay open.
    """

    def __init__(
        self, shards: Sequence[Shard], open_reader: Callable[[Shard], Reader], *, most_open: int
    ):
        self._shards = list(shards)
        self._open_reader = open_reader
        self.most_open = most_open
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._opening: dict[int, threading.Lock] = {}
        self._readers: collections.OrderedDict[int, Reader] = collections.OrderedDict()

    def __getitem__(self, number: int) -> Reader:
        """Returns the reader of a shard; opens it unless it is open."""
        with self._lock:
            if number in self._readers:
                self._readers.move_to_end(number)
                return self._readers[number]
            opening = self._opening.setdefault(number, threading.Lock())
        with opening:  # Other shards are read, and opened, meanwhile.
            with self._lock:
                if number in self._readers:
                    return self._readers[number]
            reader = self._open_reader(self._shards[number])
            with self._lock:
                self._readers[number] = reader
                self._opening.pop(number, None)
                while len(self._readers) > self.most_open:
                    self._readers.popitem(last=False)
        return reader

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("_lock", "_opening", "_readers"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()
