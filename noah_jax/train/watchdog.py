"""The watchdog: ends a process that is stuck, or whose peers are gone, and says why.

Collectives wait for ever for a process that stopped. So a thread of every process tells the
others through the key-value store that it lives and how far it is, and looks after them. A
process ends with all stacks on stderr when its own loop makes no progress, or when another one
has not been heard of; and it ends when another one says that it failed.
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
from noah_jax.errors import InputError

RESTARTABLE = 75  # EX_TEMPFAIL: the same command goes on from the last saved step

_SILENCE_SECONDS = 60.0  # of a peer whose thread speaks every few seconds
_MAX_INTERVAL_SECONDS = 5.0
_BEATS = "noah_jax/beats/"
_ENDS = "noah_jax/ends/"
_DONE = "done"
# What the collectives and the key-value store raise when a process is gone.
_LOST = re.compile(r"Gloo|NCCL|UNAVAILABLE:|DEADLINE_EXCEEDED:|ABORTED:|CANCELLED:")


class Watchdog:
    """Looks after this process and the others while the context is open.

    Leaving it by an exception that is no `orderly` one ends a process of several at once, after
    telling the others: they would wait for it. A process alone leaves it as any context.

    Args:
      limit: seconds without progress after which the process is stuck; counted from the first
        `progress` on.
      orderly: exceptions that all processes raise together.
      expected: exceptions whose message says all; others are shown with their traceback.
    """

    def __init__(
        self,
        limit: float,
        *,
        orderly: tuple[type[Exception], ...] = (),
        expected: tuple[type[Exception], ...] = (),
    ):
        if limit <= 0:
            raise InputError(f"watchdog_seconds must be above 0, got {limit}")
        self._limit = limit
        self._silence = min(_SILENCE_SECONDS, limit / 2)
        self._interval = min(_MAX_INTERVAL_SECONDS, limit / 8)
        self._orderly = orderly
        self._expected = expected
        self._store = distributed.client()
        # Time is what this thread's intervals add up to: a machine that was suspended as a
        # whole has lost none.
        self._now = 0.0
        self._step = 0
        self._since: float | None = None
        self._heard: dict[int, tuple[str, float]] = {}  # what each process said last, and when
        self._closed = threading.Event()
        self._ending = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def progress(self, step: int) -> None:
        """The loop has come to a step, or on within it."""
        self._step, self._since = step, self._now

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
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
                self._speak(f"{count} {self._step}")
                silent = self._listen()
            except Exception as error:  # whatever the store raises when its process is gone
                self._end(f"process 0 cannot be reached: {_one_line(error)}", stacks=True)
            if stuck:
                reason = f"no progress for {self._limit:g} s after step {self._step}"
                self._end("; ".join([reason, *silent, *self._behind()]), stacks=True)
            elif silent:
                self._end("; ".join(silent), stacks=True)
        with contextlib.suppress(Exception):  # process 0 may be gone already
            self._speak(_DONE)

    def _speak(self, text: str) -> None:
        if self._store is not None:
            key = f"{_BEATS}{distributed.process_index()}"
            self._store.key_value_set(key, text, allow_overwrite=True)

    def _listen(self) -> list[str]:
        """What is to be said of processes that were not heard of for too long."""
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
        """The processes that are at an earlier step than others."""
        steps = {i: int(text.split()[1]) for i, (text, _) in self._heard.items() if text != _DONE}
        last = max(steps.values(), default=0)
        return [
            f"{distributed.process_name(i)} is at step {step}, others at {last}"
            for i, step in sorted(steps.items())
            if step < last
        ]

    def _fail(self, error: BaseException) -> None:
        """Ends this process because of an exception, its own or what a lost peer made of it."""
        if "NOAH_TRACEBACK" in os.environ or not isinstance(error, self._expected):
            with _however_full_the_disk():
                traceback.print_exception(error)
        if _LOST.search(f"{type(error).__name__} {error}"):
            # A peer that ended by itself says why, and then its code is right for all.
            time.sleep(2 * self._interval)
            self._end(f"another process is gone: {_one_line(error)}")
        self._end(_one_line(error), code=1)

    def _end(
        self, why: str, code: int = RESTARTABLE, *, stacks: bool = False, tell: bool = True
    ) -> NoReturn:
        """Says why, tells the others unless one of them did, and ends the process."""
        if not self._ending.acquire(blocking=False):
            threading.Event().wait()  # the other thread is at it
        who = distributed.process_name()
        with _however_full_the_disk():
            print("error:", f"{who}: {why}" if who else why, file=sys.stderr, flush=True)
            if stacks:
                faulthandler.dump_traceback(file=sys.stderr)
        if self._store is not None:
            if tell:
                end = json.dumps({"who": who, "why": why, "code": code})
                with contextlib.suppress(Exception):  # process 0 may be gone
                    self._store.key_value_set(f"{_ENDS}{distributed.process_index()}", end)
            if distributed.process_index() == 0:
                time.sleep(2 * self._interval)  # the store ends with this process
        with _however_full_the_disk():
            sys.stdout.flush()
        os._exit(code)  # JAX's own way out would wait for the others


def _however_full_the_disk() -> contextlib.suppress:
    """Goes on to the end where the log cannot be written either."""
    return contextlib.suppress(OSError)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
