"""Prints what a program says, on standard output, and its warnings and errors, on standard error.

`working` shows on standard error what takes long. Nothing here imports JAX, so that a program can
complain before it is imported.
"""

import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from noah_jax.errors import one_line, printable

PATIENCE_SECONDS = 5.0  # What takes no longer than this is not mentioned.
_TERMINAL_SECONDS = 1.0  # Between two updates of a line on a terminal,
_PIPE_SECONDS = 60.0  # and between two lines where standard error is a file or a pipe.
_ERASE = "\r\x1b[K"

_lock = threading.RLock()
_under_way: list["Work"] = []  # The last one is shown.


class Work:
    """Something that takes long, as `working` shows it.

    Args:
      what: What the program does, such as "compiling the steps".
      total: How many things there are to do; `None` if nobody counts them.
      unit: What these things are, such as "images".
      done: How many of them were done before.
    """

    def __init__(self, what: str, total: int | None, unit: str, done: int):
        self._what = what
        self._total = total
        self._unit = unit
        self._before = self._done = done
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._on_line = False  # Whether the terminal's last line is this work's.

    def advance(self, count: int = 1) -> None:
        """Says that so many more things are done."""
        self._done += count

    def watch(self) -> None:
        """Shows this work from time to time until it ends; the target of a thread."""
        wait = PATIENCE_SECONDS
        while not self._ended.wait(wait):
            terminal = sys.stderr.isatty()
            wait = _TERMINAL_SECONDS if terminal else _PIPE_SECONDS
            with _lock:
                # It may have ended just now, and what happens inside of it is shown in its place.
                if self._ended.is_set() or _under_way[-1] is not self:
                    continue
                line = self._describe()
                print(
                    f"{_ERASE}{line}" if terminal else line,
                    end="" if terminal else "\n",
                    file=sys.stderr,
                    flush=True,
                )
                self._on_line = terminal
            if not terminal and self._total is None:
                return

    def erase(self) -> None:
        """Makes room for another line where this work's is."""
        if self._on_line:
            print(_ERASE, end="", file=sys.stderr, flush=True)
            self._on_line = False

    def end(self) -> None:
        """Shows nothing any more."""
        self._ended.set()
        self.erase()

    def _describe(self) -> str:
        seconds = time.monotonic() - self._began
        words = f"{self._what} ... {duration(seconds)}"
        if self._total is None:
            return words
        words += f", {self._done:,} of {self._total:,} {self._unit}"
        since = self._done - self._before
        if not 0 < since < self._total - self._before:
            return words
        return f"{words}, {duration(seconds * (self._total - self._done) / since)} left"


@contextlib.contextmanager
def working(
    what: str, total: int | None = None, unit: str = "images", *, done: int = 0
) -> Iterator[Work]:
    """Shows on standard error what the program does inside, if that takes more than 5 seconds.

    On a terminal a line with the elapsed time, and how much is done and left, is kept up to date
    and disappears at the end. Elsewhere it is one line, and where things are counted one more each
    minute. Only the first process of a run shows anything.

    Args:
      what: What the program does, such as "compiling the steps".
      total: How many things there are to do; `None` if nobody counts them.
      unit: What these things are.
      done: How many of them were done before.

    Yields:
      The work, whose `advance` counts.
    """
    work = Work(what, total, unit, done)
    if _process()[0] != 0:
        yield work
        return
    with _lock:
        _erase_line()
        _under_way.append(work)
    threading.Thread(target=work.watch, name=f"console: {what}", daemon=True).start()
    try:
        yield work
    finally:
        with _lock:
            work.end()
            _under_way.remove(work)


def say(*words: Any) -> None:
    """Prints at once, on the first process of a run only."""
    index, _ = _process()
    if index == 0:
        with _lock:
            _erase_line()
            print(*(printable(str(word)) for word in words), flush=True)


def note(text: str) -> None:
    """Prints a line to standard error, where it does not mix with a program's results."""
    with _lock:
        _erase_line()
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Prints a warning to standard error, on whichever process; names the process."""
    _complain("warning", printable(text))


@functools.cache
def warn_once(text: str) -> None:
    """Prints a warning as `warn` does, but each text once a process."""
    warn(text)


def fail(reason: object) -> int:
    """Prints why a program cannot go on, in one line on standard error; names the process.

    Returns:
      The exit code for the program, 1.
    """
    _complain("error", one_line(reason))
    return 1


def complain_at_once(text: str) -> None:
    """Prints a line to standard error past any lock that another thread holds on it.

    Raises:
      OSError: If standard error cannot be written.
    """
    _, process = _process()
    line = f"{process}: {text}\n" if process else f"{text}\n"
    os.write(2, (f"{_ERASE}{line}" if os.isatty(2) else line).encode())


def duration(seconds: float) -> str:
    """Formats seconds as `1:02:03` or `2:03`."""
    minutes, seconds = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _erase_line() -> None:
    if _under_way:
        _under_way[-1].erase()


def _complain(kind: str, text: str) -> None:
    _, process = _process()
    words = f"{kind}: {process}: {text}" if process else f"{kind}: {text}"
    with _lock:
        _erase_line()
        print(words, file=sys.stderr, flush=True)


def _process() -> tuple[int, str]:
    """Returns the index of this process and its name, which is empty for a process alone."""
    # A process joins others through this module; where nobody imported it, there are none.
    distributed = sys.modules.get("noah_jax.distributed")
    if distributed is None:
        return 0, ""
    return distributed.process_index(), distributed.process_name()
