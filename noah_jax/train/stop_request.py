"""Stops a run in an orderly way on SIGTERM and SIGINT."""

import contextlib
import os
import signal

from jax.experimental.multihost_utils import reached_preemption_sync_point

from noah_jax import distributed
from noah_jax.console import complain_at_once
from noah_jax.interrupts import listening, stopping_in_order


class Stopped(Exception):
    """The run was asked to stop; its state is saved."""


class StopRequest:
    """Asks for a stop at the first SIGTERM or SIGINT while the context is open.

    A single process stops after the current step. With several, JAX's preemption service picks a
    step that no process has passed, without a collective.
    """

    def __init__(self) -> None:
        self._requested = False
        self._context = contextlib.ExitStack()
        self._alone = distributed.client() is None

    def due(self, step: int) -> bool:
        """Returns whether to stop after this step; must be asked after every step."""
        return self._requested if self._alone else reached_preemption_sync_point(step)

    def __enter__(self) -> "StopRequest":
        self._context.enter_context(listening())  # for `train` called from Python
        self._context.enter_context(stopping_in_order(self._request))
        return self

    def __exit__(self, *unused: object) -> None:
        self._context.close()

    def _request(self, number: signal.Signals) -> None:
        self._requested = True
        if distributed.process_index() == 0:
            with contextlib.suppress(OSError):
                complain_at_once(
                    "stopping after this step, which is saved; a second Ctrl-C stops at once"
                )
        if not self._alone and number != signal.SIGTERM:
            # The preemption service handles SIGTERM itself, in place of any handler of Python's.
            os.kill(os.getpid(), signal.SIGTERM)
