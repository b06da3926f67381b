"""Runs trainings, several at once if asked, each a process of its own."""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import NamedTuple

from noah_jax.compare.places import Place
from noah_jax.console import note
from noah_jax.interrupts import RESTARTABLE, stopping_in_order, undoing


class Job(NamedTuple):
    """A process to run.

    Attributes:
      number: What the caller knows it by.
      name: What each line of its output starts with, if others run at the same time.
      command: Its command line.
      heading: The line that is printed when it starts.
    """

    number: int
    name: str
    command: list[str]
    heading: str


class Runner:
    """Runs jobs at a number of places and passes the first Ctrl-C or SIGTERM on to all of them.

    Args:
      places: Where jobs run, one at a time at each.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self._places: queue.SimpleQueue[Place] = queue.SimpleQueue()
        for place in places:
            self._places.put(place)
        self._parallel = len(places)
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def run(self, jobs: Sequence[Job]) -> Generator[tuple[int, int]]:
        """Runs the jobs, and yields the number of each with its exit code when it has ended.

        A job that a signal kept from starting has the exit code `RESTARTABLE`. If the caller gives
        up and closes the generator, the jobs under way are asked to stop and waited for.
        """
        with (
            stopping_in_order(self._stop),
            undoing(self._kill),
            ThreadPoolExecutor(self._parallel) as pool,
        ):
            futures = {pool.submit(self._run, job): job for job in jobs}
            try:
                for future in as_completed(futures):
                    yield futures[future].number, future.result()
            except BaseException:
                self._stop(signal.SIGTERM)
                raise

    def _run(self, job: Job) -> int:
        """Runs one job at a free place; returns its exit code."""
        place = self._places.get()
        try:
            if place.cores is not None:
                # Of this thread alone; the process inherits it.
                os.sched_setaffinity(0, place.cores)
            process = self._start(job, place)
            if process is None:
                return RESTARTABLE
            with process:
                try:
                    for line in process.stdout or ():
                        note(f"{job.name} | {line.rstrip()}")
                    return process.wait()
                finally:
                    with self._lock:
                        self._running.discard(process)
        finally:
            self._places.put(place)

    def _start(self, job: Job, place: Place) -> "subprocess.Popen[str] | None":
        """Starts a job, unless a signal came."""
        alone = self._parallel == 1
        with self._lock:
            if self._stopped:
                return None
            note(job.heading)
            # In a process group of its own, or it would get Ctrl-C from the terminal and from here.
            process = subprocess.Popen(
                job.command,
                stdout=sys.stderr if alone else subprocess.PIPE,
                stderr=None if alone else subprocess.STDOUT,
                env={**os.environ, **place.environ},
                process_group=0,
                text=True,
                errors="replace",
            )
            self._running.add(process)
            return process

    def _stop(self, number: int) -> None:
        """Starts no more jobs and passes a signal on to those that run."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.send_signal(number)

    def _kill(self) -> None:
        for process in list(self._running):
            process.kill()
