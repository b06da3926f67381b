"""What a run tells: the progress line, `metrics.jsonl` and TensorBoard events."""

import sys
from typing import Any

import jax

from noah_jax import distributed


def say(*words: Any) -> None:
    """Prints on the first host only, at once."""
    if jax.process_index() == 0:
        print(*words, flush=True)


def warn(text: str) -> None:
    """Prints a line to stderr, on whichever host."""
    _complain("warning", text)


def fail(reason: object) -> int:
    """Prints why a program cannot go on, in one line; returns its exit code."""
    _complain("error", " ".join(str(reason).split()))
    return 1


def _complain(kind: str, text: str) -> None:
    who = distributed.process_name()
    print(f"{kind}: {who}: {text}" if who else f"{kind}: {text}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds as `1:02:03` or `2:03`."""
    minutes, seconds = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
