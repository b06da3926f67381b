"""What a tracker of experiments is to a run."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True)
class TrackedRun:
    """How a run appears in a tracker.

    Attributes:
      project: The project, in MLflow the experiment, that the run belongs to.
      name: The run's name there.
      config: The run's configuration with keys such as "optim.momentum".
    """

    project: str
    name: str
    config: Mapping[str, Any]


class Tracker(Protocol):
    """One tracker, by its own library. All calls come from one thread and may raise anything."""

    def start(self, run: TrackedRun, known: str | None) -> str:
        """Starts to track a run, or goes on with it.

        Args:
          run: The run.
          known: What an earlier start of the same run returned, if there was one.

        Returns:
          What the tracker knows the run by.
        """

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Sends the metrics of a step, under names such as "train/loss"."""

    def finish(self, *, finished: bool) -> None:
        """Sends what is left.

        Args:
          finished: Whether the run took its last step; otherwise it may go on later.
        """
