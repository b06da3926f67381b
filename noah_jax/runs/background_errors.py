"""Keeps what libraries print of errors in their own threads off the screen.

Orbax and TensorBoard's writer work in threads. If a disk is full, each of them prints a traceback,
and TensorStore one for every write that is cut short. Orbax raises the same error again in the main
thread, and the metrics are written there too, so nothing is lost by not printing these.
"""

import functools
import logging
import sys
import threading
from types import TracebackType

_LIBRARIES = ("/orbax/", "/tensorboardX/", "/tensorstore/")


@functools.cache
def hush_background_errors() -> None:
    """Hides errors in the threads of these libraries, for the rest of the process."""
    logging.getLogger("absl").addFilter(lambda record: not _is_library(record.pathname))
    logging.getLogger("asyncio").addFilter(
        lambda record: not (record.exc_info and _in_library(record.exc_info[2]))
    )
    of_threads, of_nobody = threading.excepthook, sys.unraisablehook

    def in_thread(args: threading.ExceptHookArgs) -> None:
        if not _in_library(args.exc_traceback):
            of_threads(args)

    def raised_for_nobody(args: "sys.UnraisableHookArgs") -> None:
        # TensorStore tells an event loop of a write after the loop has ended with an error.
        late = str(args.exc_value) == "Event loop is closed"
        if not late and not _in_library(args.exc_traceback):
            of_nobody(args)

    threading.excepthook, sys.unraisablehook = in_thread, raised_for_nobody


def _is_library(file: str) -> bool:
    return any(part in file for part in _LIBRARIES)


def _in_library(trace: TracebackType | None) -> bool:
    while trace is not None:
        if _is_library(trace.tb_frame.f_code.co_filename):
            return True
        trace = trace.tb_next
    return False
