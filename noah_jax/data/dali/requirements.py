"""Says whether DALI can be used here, and with which backend."""

import importlib.util
from collections.abc import Sequence

import jax

from noah_jax.errors import InputError, MissingPackageError

_NVIDIA = ("gpu", "cuda")  # JAX's names of the platform


def decodes_on_gpu(devices: Sequence[jax.Device]) -> bool:
    """Returns whether DALI decodes on these devices; otherwise its CPU backend does.

    Raises:
      InputError: If they are neither NVIDIA GPUs nor the CPU.
    """
    device = devices[0]
    if device.platform == "cpu":
        return False
    is_rocm = "rocm" in getattr(device.client, "platform_version", "").lower()
    if device.platform not in _NVIDIA or is_rocm:
        name = "AMD's GPUs" if is_rocm else device.platform.upper()
        raise InputError(
            f"data.loader=dali decodes on NVIDIA GPUs, and this run is on {name}: set"
            " data.loader=host"
        )
    return True


def check_installed() -> None:
    """Checks that DALI is installed.

    Raises:
      MissingPackageError: If it is not.
    """
    try:
        found = importlib.util.find_spec("nvidia.dali")
    except ModuleNotFoundError:  # no package has brought the folder `nvidia`
        found = None
    if found is None:
        raise MissingPackageError(
            "data.loader=dali needs NVIDIA DALI: pip install 'noah-jax[dali]'"
        )
