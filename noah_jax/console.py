"""Prints what a program says, on standard output, and its warnings and errors, on standard error.

Nothing here imports JAX, so that a program can complain before it is imported.
"""

import sys
from typing import Any

from noah_jax.errors import one_line


def say(*words: Any) -> None:
    """Prints at once, on the first process of a run only."""
    index, _ = _process()
    if index == 0:
        print(*words, flush=True)


def note(text: str) -> None:
    """Prints a line to standard error, where it does not mix with a program's results."""
    print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Prints a warning to standard error, on whichever process; names the process."""
    _complain("warning", text)


def fail(reason: object) -> int:
    """Prints why a program cannot go on, in one line on standard error; names the process.

    Returns:
      The exit code for the program, 1.
    """
    _complain("error", one_line(reason))
    return 1


def duration(seconds: float) -> str:
    """Formats seconds as `1:02:03` or `2:03`."""
    minutes, seconds = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _complain(kind: str, text: str) -> None:
    _, process = _process()
    print(
        f"{kind}: {process}: {text}" if process else f"{kind}: {text}", file=sys.stderr, flush=True
    )


def _process() -> tuple[int, str]:
    """Returns the index of this process and its name, which is empty for a process alone."""
    # A process joins others through this module; where nobody imported it, there are none.
    distributed = sys.modules.get("noah_jax.distributed")
    if distributed is None:
        return 0, ""
    return distributed.process_index(), distributed.process_name()
