"""Stops a run in an orderly way on SIGTERM and SIGINT."""

import signal
import threading
from types import FrameType

from jax.experimental.multihost_utils import reached_preemption_sync_point

from noah_jax import distributed


class Stopped(Exception):
    """The run was asked to stop; its state is saved."""


class StopRequest:
    """Listens to SIGTERM and SIGINT while the context is open.

    A single process stops after the current step. With several, JAX's preemption service picks a
    step that no process has passed, without a collective.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self._requested = False
        self._alone = distributed.client() is None

    def due(self, step: int) -> bool:
        """Returns whether to stop after this step; must be asked after every step."""
        return self._requested if self._alone else reached_preemption_sync_point(step)

    def __enter__(self) -> "StopRequest":
        # Only the main thread may handle signals. With several processes the preemption service
        # handles SIGTERM itself.
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            numbers = self._SIGNALS if self._alone else (signal.SIGINT,)
            self._before = {s: signal.signal(s, self._request) for s in numbers}
        return self

    def __exit__(self, *unused: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        if not self._alone:
            signal.raise_signal(signal.SIGTERM)
