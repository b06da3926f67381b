"""Starts the training program on several processes of this machine."""

import dataclasses
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from tests.helpers import ROOT

CONFIG = ROOT / "tests" / "train" / "processes_config.py"


@dataclasses.dataclass
class Run:
    """Processes of one run, started together.

    Attributes:
      processes: The processes, by index.
      logs: The files with their standard output and standard error.
    """

    processes: list[subprocess.Popen]
    logs: list[pathlib.Path]

    def wait(self, timeout: float = 240) -> list[int]:
        """Returns the exit codes; kills what is left after `timeout` seconds, with code -9."""
        end = time.monotonic() + timeout
        for process in self.processes:
            try:
                process.wait(max(end - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        return [process.returncode for process in self.processes]

    def wait_until(self, happened: Callable[[], object], timeout: float = 240) -> None:
        """Waits until something happens while the processes run."""
        end = time.monotonic() + timeout
        while not happened():
            assert time.monotonic() < end, self.said(0)
            assert self.processes[0].poll() is None, self.said(0)
            time.sleep(0.002)

    def wait_for(self, words: str) -> None:
        """Waits until the first process has said something."""
        self.wait_until(lambda: words in self.said(0))

    def said(self, index: int) -> str:
        """Returns all that a process has printed so far."""
        return self.logs[index].read_text()

    def signal(self, index: int, number: signal.Signals) -> None:
        """Sends a signal to one process."""
        self.processes[index].send_signal(number)


def start(
    workdir: pathlib.Path,
    data: str,
    count: int,
    *keys: str,
    last_keys: Sequence[str] = (),
    largest_file: int | None = None,
) -> Run:
    """Starts the training program on `count` processes.

    Args:
      workdir: The run's folder.
      data: The class folders.
      count: Number of processes.
      *keys: Arguments such as `--config.epochs=2`, for all processes.
      last_keys: Such arguments for the last process alone.
      largest_file: Bytes after which writing a file fails, as on a full disk.
    """
    cache = ROOT / ".pytest_cache" / "jax_processes"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        # Compiling these short programs well would take longer than running them badly.
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    address = f"--coordinator=localhost:{_free_port()}"
    run = Run([], [])
    for index in range(count):
        command = [sys.executable, "-m", "noah_jax.train", f"--config={CONFIG}"]
        command += [f"--workdir={workdir}", f"--config.dataset={data}"]
        command += [f"--config.compilation_cache={cache}", *keys]
        command += last_keys if index == count - 1 else []
        if count > 1:
            command += [address, f"--num_processes={count}", f"--process_id={index}"]
        if largest_file is not None:
            command = ["prlimit", f"--fsize={largest_file}", *command]
        log = workdir.parent / f"{workdir.name}-{count}-{index}-{time.monotonic_ns()}.log"
        with log.open("w") as file:
            run.processes.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=environment,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            )
        run.logs.append(log)
    return run


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
