"""Measures how long the devices are idle while the training loop waits for images."""

import queue
import threading
import time
from typing import Any

import jax


class DeviceIdle:
    """Knows since when the devices have had nothing to do.

    The loop runs ahead of the devices, so the time for which it waits for a batch says little: the
    devices may compute meanwhile. Therefore a thread waits for each step and notes when it was
    finished. The thread runs while the context is open.
    """

    def __init__(self) -> None:
        self._steps: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._started = 0
        self._finished = 0
        self._finished_at = time.perf_counter()

    def __enter__(self) -> "DeviceIdle":
        threading.Thread(target=self._watch, name="device idle", daemon=True).start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._steps.put(None)

    def step(self, result: jax.Array) -> None:
        """Takes a result of a step that was just started."""
        with self._lock:
            self._started += 1
        self._steps.put(result)

    def since(self, begin: float) -> float:
        """Returns for how many seconds after `begin` the devices have had nothing to do until now.

        Args:
          begin: When the wait for a batch began, by `time.perf_counter`.
        """
        now = time.perf_counter()
        with self._lock:
            busy = self._finished < self._started
            return 0.0 if busy else max(0.0, now - max(begin, self._finished_at))

    def _watch(self) -> None:
        while (result := self._steps.get()) is not None:
            try:
                jax.block_until_ready(result)
            except Exception:  # The loop meets this error too, and raises it.
                return
            with self._lock:
                self._finished += 1
                self._finished_at = time.perf_counter()
