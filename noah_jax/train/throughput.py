"""Measures how fast a run is: its FLOP/s against the devices' peak, and its goodput."""

import json
import time

import jax
from etils import epath

from noah_jax.console import warn
from noah_jax.files import write_text
from noah_jax.models.base import Model
from noah_jax.models.flops import multiply_adds

GOODPUT_FILE = "goodput.json"

# Peak dense bfloat16 FLOP/s of one device, by JAX's name of its kind, as the makers state them. For
# the GPUs it is that of float16 too. TPU v2 and v3 are left out, because a device there is a core
# and not a chip.
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
    "NVIDIA L4": 121e12,
}
# Peak float16 FLOP/s of GPUs that have no fast bfloat16.
_PEAK_FLOAT16 = {
    "Tesla V100-SXM2-16GB": 125e12,
    "Tesla V100-SXM2-32GB": 125e12,
    "Tesla V100-PCIE-16GB": 112e12,
    "Tesla V100-PCIE-32GB": 112e12,
}


def peak_flops(device_kind: str, dtype: str = "bfloat16") -> float | None:
    """Returns a device's peak FLOP/s in bfloat16 or float16; `None` if unknown, as for CPUs."""
    if dtype == "float16" and not device_kind.startswith("TPU"):
        return (_PEAK_FLOPS | _PEAK_FLOAT16).get(device_kind)
    return _PEAK_FLOPS.get(device_kind) if dtype == "bfloat16" else None


def train_flops(model: Model) -> int:
    """Returns the FLOPs of training a model on one image.

    Convolutions and matrix products count, with two FLOPs for a multiply-add. The backward pass
    takes twice as many as the forward pass. What rematerialisation computes again does not count.
    """
    return 6 * multiply_adds(model)


class Goodput:
    """Measures which fraction of the time since a run's first start led to its present weights.

    Steps that a restart takes again count once. Start-up, evaluation, saving and the time in
    which nothing ran count as lost. The first process writes the seconds of training behind each
    checkpoint to a file beside the checkpoints.

    Args:
      workdir: The run's folder.
      start_step: The step that this start resumes after.
      started: When this start began, in seconds since 1970.
    """

    def __init__(self, workdir: epath.Path, *, start_step: int, started: float) -> None:
        self._path = workdir / GOODPUT_FILE
        first, training = self._read()
        self._first = started if first is None else first
        self._training = {step: s for step, s in training.items() if step <= start_step}
        # The time before a checkpoint that the file does not list is unknown, so it counts as lost.
        self._before = self._training.get(start_step, 0.0)
        self._write()

    def fraction(self, seconds: float) -> float:
        """Returns the goodput after so many seconds of training since this start, in 0..1."""
        return (self._before + seconds) / max(time.time() - self._first, 1e-9)

    def save(self, step: int, seconds: float) -> None:
        """Records that a checkpoint is saved after so many seconds of training since this start."""
        self._training[step] = self._before + seconds
        self._write()

    def _read(self) -> tuple[float | None, dict[int, float]]:
        if not self._path.exists():
            return None, {}
        try:
            saved = json.loads(self._path.read_text())
            training = {int(step): float(s) for step, s in saved["training_seconds"].items()}
            return float(saved["first_start"]), training
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            warn(f"{self._path} cannot be read ({error!r}); the goodput counts from now on")
            return None, {}

    def _write(self) -> None:
        if jax.process_index() == 0:
            record = {"first_start": self._first, "training_seconds": self._training}
            write_text(self._path, json.dumps(record, indent=2) + "\n")
