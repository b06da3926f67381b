"""Ends a process that is stuck, or whose peers are gone, and says why.

A collective waits for ever for a process that has stopped. Therefore a thread of every process
publishes through the key-value store that the process is alive and at which step it is, and reads
what the others publish. A process ends, with all stacks on standard error, if its own loop makes
no progress or another process has been silent for too long. It also ends if another process says
that it failed.
"""

import contextlib
import faulthandler
import json
import os
import re
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

from noah_jax import distributed
from noah_jax.errors import InputError, NoahError, machine_error, one_line
from noah_jax.interrupts import RESTARTABLE, undoing

_SILENCE_SECONDS = 60.0  # A live peer publishes every few seconds.
_MAX_INTERVAL_SECONDS = 5.0
_BEATS = "noah_jax/beats/"
_ENDS = "noah_jax/ends/"
_DONE = "done"
# What the collectives and the key-value store raise when a process is gone.
_LOST = re.compile(r"Gloo|NCCL|UNAVAILABLE:|DEADLINE_EXCEEDED:|ABORTED:|CANCELLED:")


class Watchdog:
    """Watches this process and the others while the context is open.

    If the context is left by an exception that is not `orderly`, and there are several processes,
    this process tells the others and ends at once, because they would wait for it. A single
    process leaves the context by its exception, as usual.

    Args:
      limit: Seconds without progress after which the process counts as stuck. They are counted
        from the first call of `progress` on.
      orderly: Exceptions that all processes raise together.
      expected: Exceptions whose message says everything; others are shown with their traceback.

    Raises:
      InputError: If the limit is not above 0.
    """

    def __init__(
        self,
        limit: float,
        *,
        orderly: tuple[type[Exception], ...] = (),
        expected: tuple[type[Exception], ...] = (),
    ) -> None:
        if limit <= 0:
            raise InputError(f"watchdog_seconds must be above 0, got {limit}")
        self._limit = limit
        self._silence = min(_SILENCE_SECONDS, limit / 2)
        self._interval = min(_MAX_INTERVAL_SECONDS, limit / 8)
        self._orderly = orderly
        self._expected = expected
        self._store = distributed.client()
        # Time is what this thread's intervals add up to, so that the time for which a machine was
        # suspended as a whole does not count.
        self._now = 0.0
        self._step = 0
        self._since: float | None = None
        self._heard: dict[int, tuple[str, float]] = {}  # What each process said last, and when.
        self._context = contextlib.ExitStack()
        self._closed = threading.Event()
        self._ending = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def progress(self, step: int) -> None:
        """Tells the watchdog that the loop has reached a step, or advanced within it."""
        self._step, self._since = step, self._now

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        self._context.enter_context(undoing(self._interrupted))
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._context.close()
        if error is not None and self._store is not None and not isinstance(error, self._orderly):
            self._fail(error)
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        count = 0
        while not self._closed.wait(self._interval):
            count += 1
            self._now += self._interval
            stuck = self._since is not None and self._now - self._since > self._limit
            try:
                self._publish(f"{count} {self._step}")
                silent = self._read()
            except Exception as error:  # The store's errors are JAX's own and have no common class.
                self._end(f"process 0 cannot be reached: {one_line(error, 500)}", stacks=True)
            if stuck:
                reason = f"no progress for {self._limit:g} s after step {self._step}"
                self._end("; ".join([reason, *silent, *self._behind()]), stacks=True)
            elif silent:
                self._end("; ".join(silent), stacks=True)
        with contextlib.suppress(Exception):  # Process 0, which has the store, may be gone.
            self._publish(_DONE)

    def _publish(self, text: str) -> None:
        if self._store is not None:
            key = f"{_BEATS}{distributed.process_index()}"
            self._store.key_value_set(key, text, allow_overwrite=True)

    def _read(self) -> list[str]:
        """Reads what the others published; returns a message for each that is silent too long."""
        if self._store is None:
            return []
        for _, text in self._store.key_value_dir_get(_ENDS):
            end = json.loads(text)
            self._end(f"ends because {end['who']} does: {end['why']}", end["code"], tell=False)
        now = self._now
        for key, text in self._store.key_value_dir_get(_BEATS):
            index = int(key.rpartition("/")[2])
            if self._heard.get(index, ("",))[0] != text:
                self._heard[index] = (text, now)
        return [
            f"{distributed.process_name(index)} has not been heard of for {now - when:.0f} s, last"
            f" at step {text.split()[1]}"
            for index, (text, when) in sorted(self._heard.items())
            if text != _DONE and now - when > self._silence
        ]

    def _behind(self) -> list[str]:
        """Returns a message for each process that is at an earlier step than others."""
        steps = {i: int(text.split()[1]) for i, (text, _) in self._heard.items() if text != _DONE}
        last = max(steps.values(), default=0)
        return [
            f"{distributed.process_name(i)} is at step {step}, others at {last}"
            for i, step in sorted(steps.items())
            if step < last
        ]

    def _fail(self, error: BaseException) -> None:
        """Ends this process because of an exception, which a lost peer may have caused."""
        error = machine_error(error) or error
        lost = _LOST.search(f"{type(error).__name__} {error}")
        expected = lost or isinstance(error, (*self._expected, NoahError))
        if "NOAH_TRACEBACK" in os.environ or not expected:
            with _ignoring_a_full_disk():
                traceback.print_exception(error)
        if lost:
            # If the peer exited on its own it has published its reason and exit code; give that
            # message time to arrive.
            time.sleep(2 * self._interval)
            self._end(f"another process is gone: {one_line(error, 500)}")
        self._end(one_line(error, 500), code=1)

    def _tell(self, why: str, code: int) -> None:
        """Tells the others why this process ends."""
        if self._store is None:
            return
        end = json.dumps({"who": distributed.process_name(), "why": why, "code": code})
        with contextlib.suppress(Exception):  # Process 0 may be gone.
            self._store.key_value_set(f"{_ENDS}{distributed.process_index()}", end)

    def _interrupted(self) -> None:
        """Tells the others that a signal ends this process."""
        self._tell("it was stopped", RESTARTABLE)
        if self._store is not None and distributed.process_index() == 0:
            time.sleep(2 * self._interval)

    def _end(
        self, why: str, code: int = RESTARTABLE, *, stacks: bool = False, tell: bool = True
    ) -> NoReturn:
        """Says why, tells the others unless one of them knows, and ends the process."""
        if not self._ending.acquire(blocking=False):
            threading.Event().wait()  # The other thread is ending the process.
        who = distributed.process_name()
        with _ignoring_a_full_disk():
            print("error:", f"{who}: {why}" if who else why, file=sys.stderr, flush=True)
            if stacks:
                faulthandler.dump_traceback(file=sys.stderr)
        if tell:
            self._tell(why, code)
        if self._store is not None and distributed.process_index() == 0:
            time.sleep(2 * self._interval)  # The store ends with this process.
        with _ignoring_a_full_disk():
            sys.stdout.flush()
        os._exit(code)  # JAX's own exit would wait for the others.


def _ignoring_a_full_disk() -> contextlib.suppress:
    """Ignores that the log cannot be written, so that the process still ends."""
    return contextlib.suppress(OSError)
