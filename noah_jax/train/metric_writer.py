"""Writes the metrics of a run to `metrics.jsonl`, as TensorBoard events, and to trackers."""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence

import jax
from etils import epath
from tensorboardX import SummaryWriter

from noah_jax.files import copy_files, write_text
from noah_jax.train.trackers.background import Trackers
from noah_jax.train.trackers.tracker import TrackedRun


class MetricWriter:
    """Writes scalars by step, on the first process.

    A run that resumes at a step first drops the lines after it, so that the file is what
    an uninterrupted run writes. Object stores cannot append to a file, so for `gs://` folders the
    files are written locally and copied as a whole at every `flush`.

    Args:
      workdir: The run's folder, local or `gs://`.
      start_step: The step the run resumes after; 0 for a fresh run.
      trackers: Names of the trackers to use besides, see `noah_jax.train.trackers.libraries`.
      tracked: How the run appears there.
    """

    def __init__(
        self,
        workdir: epath.Path,
        *,
        start_step: int,
        trackers: Sequence[str],
        tracked: TrackedRun,
    ) -> None:
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self._target = workdir
        self._remote = "://" in os.fspath(workdir)
        self._local = epath.Path(tempfile.mkdtemp()) if self._remote else workdir
        lines = self._lines_until(workdir / "metrics.jsonl", start_step)
        write_text(self._local / "metrics.jsonl", "".join(lines))
        self._events = SummaryWriter(
            os.fspath(self._local / "tensorboard"), purge_step=start_step + 1
        )
        self._trackers = Trackers(trackers, tracked, workdir)

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Writes one line, and one event per value, which TensorBoard shows as `split/name`."""
        if not self._active:
            return
        with (self._local / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        for name, value in values.items():
            self._events.add_scalar(f"{split}/{name}", value, step)
        self._trackers.write(step, split, values)

    def flush(self) -> None:
        """Writes out everything so far, to the bucket if the run's folder is one."""
        if not self._active:
            return
        self._events.flush()
        if self._remote:
            copy_files(self._local, self._target)

    def close(self, *, finished: bool) -> None:
        """Flushes and closes the files, and ends the trackers.

        Args:
          finished: Whether the run took its last step; otherwise it may go on later.
        """
        if not self._active:
            return
        self.flush()
        self._events.close()
        if self._remote:
            shutil.rmtree(self._local)
        self._trackers.close(finished=finished)

    @staticmethod
    def _lines_until(path: epath.Path, step: int) -> list[str]:
        if not path.exists():
            return []
        return [
            line
            for line in path.read_text().splitlines(keepends=True)
            # A line that a crash cut off lacks its end, and is after the last checkpoint.
            if line.endswith("\n") and json.loads(line)["step"] <= step
        ]
