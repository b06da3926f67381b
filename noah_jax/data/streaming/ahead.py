"""Downloads the shards that will be read next while others are trained on."""

import collections
import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from noah_jax.data.streaming.cache import NoRoomError, ShardCache
from noah_jax.data.streaming.shards import Shard
from noah_jax.errors import NoahError

Placed = TypeVar("Placed")
# When shards are read: epoch, and number within it.
Time = tuple[int, int]
Group = tuple[Time, Sequence[int]]  # when, and the numbers of the shards

_THREADS = 4
_SECONDS_BETWEEN_TRIES = 1.0


class ReadAhead:
    """Threads that download shards in the order in which they will be read.

    They stop as soon as the cache is full of what is in use, and go on when it is not.

    Args:
      cache: Where the shards go.
      shards: All shards of the split.
      groups: The shards that are read together, in the order of their times.
      ahead: How many groups after the present one are downloaded.
    """

    def __init__(
        self, cache: ShardCache, shards: Sequence[Shard], groups: Iterable[Group], *, ahead: int
    ):
        self._cache = cache
        self._shards = shards
        self._groups = iter(groups)
        self._ahead = ahead
        self._now: Time = (-1, -1)
        self._coming: collections.deque[Time] = collections.deque()
        self._tasks: collections.deque[int] = collections.deque()
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        for number in range(_THREADS):
            threading.Thread(target=self._run, name=f"shards {number}", daemon=True).start()

    def reached(self, now: Time) -> None:
        """Says which group is being read."""
        with self._changed:
            self._now = now
            self._changed.notify_all()

    def stop(self) -> None:
        """Downloads nothing more; what is under way is finished."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        while (number := self._next()) is not None:
            while not self._stopped.is_set():
                try:
                    # Whoever reads the shard will meet the same error, and raise it.
                    with contextlib.suppress(NoahError, OSError):
                        self._cache.fetch(self._shards[number])
                    break
                except NoRoomError:
                    self._stopped.wait(_SECONDS_BETWEEN_TRIES)

    def _next(self) -> int | None:
        """Returns the next shard when its time has come; `None` at the end."""
        with self._changed:
            while not self._stopped.is_set():
                while self._coming and self._coming[0] <= self._now:
                    self._coming.popleft()
                if self._tasks:
                    return self._tasks.popleft()
                if len(self._coming) < self._ahead:
                    group = next(self._groups, None)
                    if group is None:
                        return None
                    self._coming.append(group[0])
                    self._tasks.extend(group[1])
                else:
                    self._changed.wait()
        return None


@contextlib.contextmanager
def one_by_one(
    cache: ShardCache, shards: Sequence[Shard], numbers: Iterable[int]
) -> Iterator[ReadAhead]:
    """Downloads some shards in the order of their numbers while the body reads them.

    The body says by `reached((0, number))` which one it reads.
    """
    ahead = ReadAhead(cache, shards, (((0, n), [n]) for n in numbers), ahead=_THREADS)
    try:
        yield ahead
    finally:
        ahead.stop()


def following(
    batches: Iterator[Placed],
    start: Callable[[], ReadAhead],
    times: Callable[[int], Time],
    first_step: int,
) -> Iterator[Placed]:
    """Yields batches, and lets the downloads keep ahead of them.

    Args:
      batches: The batches.
      start: Starts the downloads, which are stopped at the end.
      times: Returns when the last images of a step's batch are read.
      first_step: The step of the first batch.
    """
    ahead = start()
    try:
        ahead.reached(times(first_step))
        for step, batch in enumerate(batches, first_step):
            ahead.reached(times(step))
            yield batch
    finally:
        ahead.stop()
