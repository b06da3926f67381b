"""Shares the machine's devices between trainings that run at once."""

import itertools
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import NamedTuple

from noah_jax.errors import UsageError, error_line, one_line

# Asked in a process of its own, because whoever asks holds the devices until it ends. A TPU's chip
# may have two cores, which are devices.
_QUESTION = """
import jax
devices = jax.local_devices()
chips = {getattr(device, "coords", None) or device.id for device in devices}
print(devices[0].platform, len({tuple(c) if isinstance(c, list) else c for c in chips}))
"""
# Where each platform looks for the devices it may use, and what else a process with one TPU chip
# needs: https://cloud.google.com/tpu/docs/run-calculation-jax and libtpu's own messages.
_GPUS = "CUDA_VISIBLE_DEVICES"
_TPU_CHIPS = "TPU_VISIBLE_CHIPS"
_ONE_CHIP = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}


class Place(NamedTuple):
    """The devices of a training.

    Attributes:
      environ: What its environment has besides.
      cores: The processor cores it may use; `None` leaves them as they are.
    """

    environ: dict[str, str]
    cores: frozenset[int] | None


def find_places(parallel: int) -> list[Place]:
    """Returns a place for each of the trainings that run at once.

    A training alone has all devices. Otherwise each gets as many GPUs as the others, one TPU chip,
    or where there are neither its share of the processor cores.

    Args:
      parallel: How many trainings run at once.

    Raises:
      UsageError: If there are fewer GPUs or TPU chips, or JAX does not start.
    """
    if parallel == 1:
        return [Place({}, None)]
    platform, count = _devices()
    if platform == "cpu":
        return [Place({}, cores) for cores in share_cores(parallel)]
    return [Place(words, None) for words in share_devices(platform, count, parallel, os.environ)]


def share_devices(
    platform: str, count: int, parallel: int, environ: Mapping[str, str]
) -> list[dict[str, str]]:
    """Returns what each training's environment has, so that it sees its own devices alone.

    Args:
      platform: JAX's name of the platform, "tpu" or that of a GPU.
      count: How many devices this process sees.
      parallel: How many trainings run at once.
      environ: The environment of this process, which may name its devices.

    Raises:
      UsageError: If there are fewer devices than trainings.
    """
    variable, kind = (_TPU_CHIPS, "TPU chips") if platform == "tpu" else (_GPUS, "GPUs")
    if parallel > count:
        raise UsageError(
            f"--parallel {parallel} needs as many {kind}, and this machine shows {count}; give at"
            f" most --parallel {count}"
        )
    names = environ[variable].split(",") if environ.get(variable) else list(map(str, range(count)))
    if platform == "tpu":
        return [{variable: name, **_ONE_CHIP} for name in names[:parallel]]
    each = count // parallel
    return [{variable: ",".join(names[i * each : (i + 1) * each])} for i in range(parallel)]


def share_cores(parallel: int) -> list[frozenset[int] | None]:
    """Returns the processor cores of each training; `None` where a process cannot choose them.

    If there are fewer cores than trainings, several trainings share one.
    """
    if not hasattr(os, "sched_getaffinity"):
        return [None] * parallel
    cores = sorted(os.sched_getaffinity(0))
    if parallel > len(cores):
        return [frozenset({cores[i % len(cores)]}) for i in range(parallel)]
    ends = [i * len(cores) // parallel for i in range(parallel + 1)]
    return [frozenset(cores[a:b]) for a, b in itertools.pairwise(ends)]


def _devices() -> tuple[str, int]:
    """Returns JAX's name of the platform and how many devices (TPU chips) there are."""
    command = [sys.executable, "-c", _QUESTION]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    words = answer.stdout.split()
    if answer.returncode or len(words) != 2:
        reason = one_line(error_line(answer.stderr), 200)
        raise UsageError(f"JAX does not find this machine's devices: {reason}")
    return words[0], int(words[1])
