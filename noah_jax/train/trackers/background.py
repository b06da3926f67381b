"""Sends metrics to trackers from threads of their own, so that no tracker can hold up a run.

A tracker that cannot be reached is named in one warning, and the run goes on without it. What it
needs to go on with the same tracked run after a restart is in a file in the run's folder.
"""

import atexit
import json
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from etils import epath

from noah_jax import console
from noah_jax.errors import one_line
from noah_jax.files import read_text, write_text
from noah_jax.train.trackers.libraries import TRACKERS
from noah_jax.train.trackers.tracker import TrackedRun, Tracker

KEYS_FILE = "trackers.json"

_WAITING = 10_000  # Lines of metrics that may wait for a slow tracker.
_CLOSE_SECONDS = 60.0  # How long the end of a run waits for its trackers.

_Line = tuple[int, Mapping[str, float]]


class Trackers:
    """Sends a run's metrics to several trackers.

    Args:
      names: Keys of `TRACKERS`, whose libraries are installed.
      run: How the run appears there.
      workdir: The run's folder. What each tracker knows the run by is kept there.
    """

    def __init__(self, names: Sequence[str], run: TrackedRun, workdir: epath.Path) -> None:
        self._path = workdir / KEYS_FILE
        self._keys = self._read() if names else {}
        self._lock = threading.Lock()
        self._threads = [
            _Sender(name, TRACKERS[name](), run, self._keys.get(name), self._keep) for name in names
        ]
        if self._threads:
            atexit.register(self.close, finished=False)  # after an error, too

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Sends the metrics of a step, as `split/name`; returns at once."""
        named = {f"{split}/{name}": value for name, value in values.items()}
        for thread in self._threads:
            thread.write(step, named)

    def close(self, *, finished: bool) -> None:
        """Waits until everything is sent, for a minute at most.

        Args:
          finished: Whether the run took its last step; otherwise it may go on later.
        """
        atexit.unregister(self.close)
        for thread in self._threads:
            thread.ask_to_end(finished=finished)
        end = time.monotonic() + _CLOSE_SECONDS
        for thread in self._threads:
            thread.wait(end - time.monotonic())
        self._threads = []

    def _keep(self, name: str, key: str) -> None:
        with self._lock:
            self._keys[name] = key
            write_text(self._path, json.dumps(self._keys, indent=2) + "\n")

    def _read(self) -> dict[str, str]:
        if not self._path.exists():
            return {}
        try:
            keys = json.loads(read_text(self._path))
            return {str(name): str(key) for name, key in keys.items()}
        except (ValueError, AttributeError) as error:
            console.warn(f"{self._path} cannot be read ({error}): trackers show a new run")
            return {}


class _Sender:
    """Sends to one tracker, from a thread of its own.

    Args:
      name: The tracker's name.
      tracker: The tracker.
      run: How the run appears there.
      known: What the tracker knows the run by, if it does.
      keep: Called with the name and what the tracker knows the run by.
    """

    def __init__(
        self,
        name: str,
        tracker: Tracker,
        run: TrackedRun,
        known: str | None,
        keep: Callable[[str, str], None],
    ) -> None:
        self._name, self._tracker, self._run = name, tracker, run
        self._known, self._keep = known, keep
        self._waiting: queue.Queue[_Line | None] = queue.Queue(_WAITING)
        self._finished = False
        self._lost = 0
        self._thread = threading.Thread(target=self._send, name=f"{name} tracker", daemon=True)
        self._thread.start()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if not self._thread.is_alive():
            return
        try:
            self._waiting.put_nowait((step, values))
        except queue.Full:
            self._lost += 1

    def ask_to_end(self, *, finished: bool) -> None:
        self._finished = finished
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            self._lost += 1  # `wait` says that it is too slow

    def wait(self, seconds: float) -> None:
        self._thread.join(max(seconds, 0.0))
        missing = self._lost + (self._waiting.qsize() if self._thread.is_alive() else 0)
        if self._thread.is_alive() or self._lost:
            console.warn(
                f"{self._name} is too slow: it lacks {missing:,} lines of metrics, which are all in"
                " metrics.jsonl"
            )

    def _send(self) -> None:
        try:
            self._keep(self._name, self._tracker.start(self._run, self._known))
            while (line := self._waiting.get()) is not None:
                self._tracker.write(*line)
            self._tracker.finish(finished=self._finished)
        except BaseException as error:  # a tracker must not end a run, whatever its library does
            console.warn(
                f"{self._name} does not track this run any more: {one_line(error, 200)}; the"
                " metrics are in metrics.jsonl"
            )
