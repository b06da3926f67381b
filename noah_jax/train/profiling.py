"""A profile of some steps, for xprof."""

import os
import shutil
import tempfile
from typing import Any

import jax
from etils import epath

from noah_jax.console import say
from noah_jax.files import copy_files

FOLDER = "profile"

_SKIPPED_STEPS = 10  # until the input has settled
_STEPS = 5


class StepProfile:
    """Profiles five steps of the first process while the context is open, or none.

    They are written to `profile/` in the run's folder; of a short run, fewer, and earlier ones.

    Args:
      workdir: the run's folder, local or `gs://`.
      start_step: the step the run resumes after.
      total_steps: of the run.
      wanted: whether to profile at all.
    """

    def __init__(self, workdir: epath.Path, *, start_step: int, total_steps: int, wanted: bool):
        self._target = workdir / FOLDER
        left = total_steps - start_step
        self._first = start_step + 1 + max(min(_SKIPPED_STEPS, left - _STEPS), 0)
        self._last = min(self._first + _STEPS - 1, total_steps)
        self._wanted = wanted and left > 0 and jax.process_index() == 0
        self._local: str | None = None  # where the profile is being written

    def step(self, step: int) -> jax.profiler.StepTraceAnnotation:
        """A context for one step, by which xprof tells steps apart."""
        if self._wanted and step == self._first:
            remote = "://" in os.fspath(self._target)
            self._local = tempfile.mkdtemp() if remote else os.fspath(self._target)
            jax.profiler.start_trace(self._local)
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def after(self, step: int, metrics: Any) -> None:
        """Ends the profile after its last step; waits for `metrics` of that step."""
        if self._local is not None and step == self._last:
            jax.block_until_ready(metrics)
            self._end()
            say(
                f"profile of steps {self._first} to {step} in {self._target};"
                f" to see it: pip install xprof && xprof server --logdir {self._target}"
            )

    def __enter__(self) -> "StepProfile":
        return self

    def __exit__(self, *unused) -> None:
        if self._local is not None:
            self._end()

    def _end(self) -> None:
        local, self._local = self._local, None
        jax.profiler.stop_trace()
        if local != os.fspath(self._target):
            copy_files(epath.Path(local), self._target)
            shutil.rmtree(local)
