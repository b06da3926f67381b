"""Ends a program on Ctrl-C and SIGTERM: at once, with one line, and with nothing half-written.

Python runs a signal's handler in the main thread between two of its own instructions: not while XLA
compiles, which takes minutes. An exception raised there may also end inside a library, which loses
it or crashes. Therefore a thread waits for the signals. It prints a line, undoes what is unfinished
and ends the process, whatever the main thread does meanwhile. The loop of the training program asks
to be told instead (`stopping_in_order`), because it can save first.
"""

import contextlib
import multiprocessing
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from noah_jax.console import complain_at_once

INTERRUPTED = 130  # What shells report of a program that Ctrl-C ended.
RESTARTABLE = 75  # EX_TEMPFAIL: started again, the same command would do its work.

_SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
_FLUSH_SECONDS = 0.5
_ANSWER_SECONDS = 1.0

_undo: list[Callable[[], None]] = []
_advice: list[str] = []
_told: list[Callable[[signal.Signals], None]] = []
_inbox: socket.socket | None = None  # Where signals are written; `None` while nobody listens.
_ending = threading.Event()
_dealt_with: queue.SimpleQueue[int] = queue.SimpleQueue()


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Ends the process on Ctrl-C or SIGTERM while the context is open.

    Inside another such context, or in any thread but the main one, it does nothing.
    """
    global _inbox
    if _inbox is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    outbox, _inbox = socket.socketpair()
    _inbox.setblocking(False)
    fd = signal.set_wakeup_fd(_inbox.fileno(), warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, _pass_on) for number in _SIGNALS}
    threading.Thread(target=_listen, args=(outbox,), name="interrupts", daemon=True).start()
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(fd)
        _inbox.close()
        _inbox = None


@contextlib.contextmanager
def undoing(undo: Callable[[], None]) -> Iterator[None]:
    """Calls a function if a signal ends the process while the context is open.

    Args:
      undo: Removes what is unfinished. It runs in another thread than the body, which goes on.
    """
    _undo.append(undo)
    try:
        yield
    finally:
        _undo.remove(undo)


@contextlib.contextmanager
def advising(advice: str) -> Iterator[None]:
    """Appends what to do to the line that is printed if a signal ends the process meanwhile."""
    _advice.append(advice)
    try:
        yield
    finally:
        _advice.remove(advice)


@contextlib.contextmanager
def stopping_in_order(tell: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Tells of the first signal instead of ending the process; the second one ends it.

    Args:
      tell: Called with the signal, in another thread; must return at once.
    """
    _told.append(tell)
    try:
        yield
    finally:
        if tell in _told:
            _told.remove(tell)


def wait_if_ending() -> None:
    """Waits for the end of the process if a signal is ending it; otherwise returns at once.

    What fails then, fails because its files are being removed, so nobody should read of it.
    """
    if _ending.is_set():
        threading.Event().wait()


def _pass_on(number: int, frame: FrameType | None) -> None:
    """Handles a signal in the main thread, once it gets there: waits for the other thread."""
    if _inbox is None:
        return
    # Event loops such as uvloop's, which Orbax runs, have a wake-up file of their own meanwhile.
    fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(fd)
    if fd != _inbox.fileno():
        _inbox.send(bytes([number]))
    with contextlib.suppress(queue.Empty):
        _dealt_with.get(timeout=_ANSWER_SECONDS)


def _listen(outbox: socket.socket) -> None:
    with outbox:
        while numbers := outbox.recv(64):
            for number in numbers:
                if number not in set(_SIGNALS):
                    continue
                if _told:
                    _told.pop()(signal.Signals(number))
                else:
                    _end(signal.Signals(number))
                _dealt_with.put(number)


def _end(number: signal.Signals) -> None:
    _ending.set()
    with contextlib.suppress(OSError):  # a full disk, or nobody reads any more
        complain_at_once("; ".join([f"stopped by {_SIGNALS[number]}", *_advice]))
    for undo in reversed(_undo.copy()):
        with contextlib.suppress(Exception):
            undo()
    # Workers that read images would stay.
    for worker in multiprocessing.active_children():
        worker.kill()
    # The main thread may hold standard output while it waits for a reader.
    flush = threading.Thread(target=_flush, daemon=True)
    flush.start()
    flush.join(_FLUSH_SECONDS)
    # An exit in order would wait for compilers, and they crash when their data is taken away.
    os._exit(RESTARTABLE if number == signal.SIGTERM else INTERRUPTED)


def _flush() -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
