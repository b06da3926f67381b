"""How fast a run is: FLOP/s against the device's peak, and the share of its time that trains."""

import json
import time

import jax
from etils import epath

from noah_jax.console import warn
from noah_jax.files import write_text
from noah_jax.models.base import Model
from noah_jax.models.flops import multiply_adds

GOODPUT_FILE = "goodput.json"

# Dense bfloat16 FLOP/s of one device, by JAX's name of its kind, as the makers state them. Only
# devices that are a whole chip: of TPU v2 and v3 a device is a core.
_PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """A device's FLOP/s in bfloat16 at best; `None` where it is not known, as of CPUs."""
    return _PEAK_FLOPS.get(device_kind)


def train_flops(model: Model) -> int:
    """FLOPs that training a model takes for an image, of convolutions and matrix products.

    Two for a multiply-add, and the backward pass takes twice as many as the forward pass. What
    rematerialisation computes again does not count.
    """
    return 6 * multiply_adds(model)


class Goodput:
    """The share of the time since a run's first start that has led to its present weights.

    Steps that a restart takes again count once; start-up, evaluation, saving and the time in
    which nothing ran count as lost. A file beside the checkpoints, which the first process
    writes, has the seconds of training behind each of them.

    Args:
      workdir: the run's folder.
      start_step: the step that this start resumes after.
      started: when this start began, in seconds since the epoch.
    """

    def __init__(self, workdir: epath.Path, *, start_step: int, started: float):
        self._path = workdir / GOODPUT_FILE
        first, training = self._read()
        self._first = started if first is None else first
        self._training = {step: s for step, s in training.items() if step <= start_step}
        # Of a checkpoint that the file does not know, the time is lost.
        self._before = self._training.get(start_step, 0.0)
        self._write()

    def share(self, seconds: float) -> float:
        """The share, after so many seconds of training since this start."""
        return (self._before + seconds) / max(time.time() - self._first, 1e-9)

    def save(self, step: int, seconds: float) -> None:
        """A checkpoint is being saved, after so many seconds of training since this start."""
        self._training[step] = self._before + seconds
        self._write()

    def _read(self) -> tuple[float | None, dict[int, float]]:
        if not self._path.exists():
            return None, {}
        try:
            found = json.loads(self._path.read_text())
            training = {int(step): float(s) for step, s in found["training_seconds"].items()}
            return float(found["first_start"]), training
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            warn(f"{self._path} cannot be read ({error!r}); the goodput counts from now on")
            return None, {}

    def _write(self) -> None:
        if jax.process_index() == 0:
            facts = {"first_start": self._first, "training_seconds": self._training}
            write_text(self._path, json.dumps(facts, indent=2) + "\n")
