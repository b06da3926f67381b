"""Writes a profile of some steps, to be looked at with xprof.

`clu.periodic_actions.Profile` is not used. It stops after the call of the last step, which the
device may not have begun; it never ends the profile of a run that is too short; and it cannot write
to `gs://`.
"""

import os
import shutil
import tempfile
from typing import Any

import jax
from etils import epath

from noah_jax.console import say
from noah_jax.files import copy_files

FOLDER = "profile"

_SKIPPED_STEPS = 10  # The input has settled by then.
_STEPS = 5


class StepProfile:
    """Profiles five steps of the first process while the context is open, if wanted.

    The profile is written to `profile/` in the run's folder. The first ten steps are skipped; a
    short run skips fewer.

    Args:
      workdir: The run's folder, local or `gs://`.
      start_step: The step the run resumes after.
      total_steps: Steps of the whole run.
      wanted: Whether to profile at all.
    """

    def __init__(
        self, workdir: epath.Path, *, start_step: int, total_steps: int, wanted: bool
    ) -> None:
        self._target = workdir / FOLDER
        left = total_steps - start_step
        self._first = start_step + 1 + max(min(_SKIPPED_STEPS, left - _STEPS), 0)
        self._last = min(self._first + _STEPS - 1, total_steps)
        self._wanted = wanted and left > 0 and jax.process_index() == 0
        self._local: str | None = None  # Where the profile is being written, while it is.

    def step(self, step: int) -> jax.profiler.StepTraceAnnotation:
        """Returns the context of one step, by which xprof tells steps apart."""
        if self._wanted and step == self._first:
            remote = "://" in os.fspath(self._target)
            self._local = tempfile.mkdtemp() if remote else os.fspath(self._target)
            jax.profiler.start_trace(self._local)
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def after(self, step: int, metrics: Any) -> None:
        """Ends the profile after its last step, once that step's `metrics` are computed."""
        if self._local is not None and step == self._last:
            jax.block_until_ready(metrics)
            self._end()
            say(
                f"profile of steps {self._first} to {step} in {self._target};"
                f" to see it: pip install xprof && xprof server --logdir {self._target}"
            )

    def __enter__(self) -> "StepProfile":
        return self

    def __exit__(self, *unused: object) -> None:
        if self._local is not None:
            self._end()

    def _end(self) -> None:
        local, self._local = self._local, None
        jax.profiler.stop_trace()
        if local is not None and local != os.fspath(self._target):
            copy_files(epath.Path(local), self._target)
            shutil.rmtree(local)
