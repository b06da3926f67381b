"""What a run tells: the progress line, `metrics.jsonl` and TensorBoard events."""

import json
import os
import shutil
import sys
import tempfile
from typing import Any

import jax
from etils import epath
from tensorboardX import SummaryWriter

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


def write_text(path: epath.Path, text: str) -> None:
    """Writes a whole file or nothing: under another name first, then renamed."""
    partial = path.parent / f".{path.name}.partial"
    partial.write_text(text)
    partial.replace(path)


def copy_files(source: epath.Path, target: epath.Path) -> None:
    """Copies the files in a folder and its subfolders into another one, local or `gs://`."""
    for path in source.glob("**/*"):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())


def duration(seconds: float) -> str:
    """Seconds as `1:02:03` or `2:03`."""
    minutes, seconds = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class MetricWriter:
    """Scalars by step, as lines of `metrics.jsonl` and as TensorBoard events.

    A run that resumes at a step first drops the lines after it, so that the file is what
    an uninterrupted run writes. Object stores cannot append: there the files are kept here
    and copied whole at every `flush`.

    Args:
      workdir: the run's folder, local or `gs://`.
      start_step: the step the run resumes after; 0 for a fresh one.
    """

    def __init__(self, workdir: epath.Path, *, start_step: int):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self._target = workdir
        self._remote = "://" in os.fspath(workdir)
        self._local = epath.Path(tempfile.mkdtemp()) if self._remote else workdir
        lines = self._kept_lines(workdir / "metrics.jsonl", start_step)
        write_text(self._local / "metrics.jsonl", "".join(lines))
        self._file = (self._local / "metrics.jsonl").open("a")
        self._events = SummaryWriter(
            os.fspath(self._local / "tensorboard"), purge_step=start_step + 1
        )

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """One line and one event per value, which TensorBoard shows as `split/name`."""
        if not self._active:
            return
        self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(f"{split}/{name}", value, step)

    def flush(self) -> None:
        """Makes what was written so far safe where it belongs."""
        if not self._active:
            return
        self._file.flush()
        self._events.flush()
        if self._remote:
            copy_files(self._local, self._target)

    def close(self) -> None:
        """Flushes and closes the files."""
        if not self._active:
            return
        self.flush()
        self._file.close()
        self._events.close()
        if self._remote:
            shutil.rmtree(self._local)

    @staticmethod
    def _kept_lines(path: epath.Path, start_step: int) -> list[str]:
        if not path.exists():
            return []
        kept = []
        for line in path.read_text().splitlines(keepends=True):
            # A line cut off by a crash has no end and is after the last checkpoint.
            if line.endswith("\n") and json.loads(line)["step"] <= start_step:
                kept.append(line)
        return kept
