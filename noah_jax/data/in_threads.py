"""Runs a function on many things in threads and keeps their order."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from noah_jax.data.batches import num_cores

_In = TypeVar("_In")
_Out = TypeVar("_Out")

_PENDING = 4  # things that wait for each thread


def in_threads(work: Callable[[_In], _Out], things: Iterable[_In]) -> Iterator[_Out]:
    """Yields the result for each of the things, in their order; every core has a thread.

    Few things more than there are threads are taken before their results are wanted.
    """
    threads = num_cores()
    pending: collections.deque[Future[_Out]] = collections.deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for thing in things:
            pending.append(pool.submit(work, thing))
            if len(pending) > _PENDING * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
