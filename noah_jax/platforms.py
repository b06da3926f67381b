"""Keeps libtpu quiet on machines that have no TPU; imports nothing heavy.

`pip install libtpu` compiles for TPUs anywhere. But where it is installed, JAX asks it for a TPU
whenever it starts, and it complains in several lines if there is none. A TPU or GPU that is there
must never be missed, so JAX chooses by itself wherever there is a trace of one.
"""

import glob
import importlib.util
import pkgutil
from collections.abc import MutableMapping

_GOOGLE = "0x1ae0"  # the vendor of TPUs on the PCI bus
_VENDORS = "/sys/bus/pci/devices/*/vendor"
_TPU_DEVICES = ("/dev/accel*", "/dev/vfio/*")
# Of a driver, of Windows' subsystem for Linux, of Jetson boards, and of AMD.
_GPU_DEVICES = ("/dev/nvidia*", "/dev/dxg", "/dev/nvmap", "/dev/nvhost*", "/dev/nvgpu*", "/dev/kfd")
_CUDA_PLUGINS = "xla_cuda"
# Set on TPU VMs, in GKE, and by whoever wants a certain platform.
_VARIABLES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "JAX_FORCE_TPU_INIT", "PJRT_DEVICE")


def choose_platform(environ: MutableMapping[str, str]) -> None:
    """Sets JAX_PLATFORMS=cpu if libtpu is installed and neither a TPU nor a GPU is there.

    Call it before JAX is imported.

    Args:
      environ: The environment of the process.
    """
    if importlib.util.find_spec("libtpu") is None:
        return
    asked_for = any(name in environ for name in _VARIABLES)
    if not (asked_for or _tpu_variables(environ) or _has_tpu() or _may_have_gpu()):
        environ["JAX_PLATFORMS"] = "cpu"


def _tpu_variables(environ: MutableMapping[str, str]) -> bool:
    # This one only says how libtpu looks for a TPU; whoever compiles for TPUs sets it.
    return any(n.startswith(("TPU_", "MEGASCALE_")) for n in environ if n != "TPU_SKIP_MDS_QUERY")


def _has_tpu() -> bool:
    if any(glob.glob(pattern) for pattern in _TPU_DEVICES):
        return True
    for path in glob.glob(_VENDORS):
        try:
            with open(path) as file:
                if file.read().strip() == _GOOGLE:
                    return True
        except OSError:
            return True  # Nobody knows what is there.
    return False


def _may_have_gpu() -> bool:
    if any(glob.glob(pattern) for pattern in _GPU_DEVICES):
        return True
    return any(not name.startswith(_CUDA_PLUGINS) for name in _plugins())


def _plugins() -> list[str]:
    """Returns the names of JAX's plugins for other devices that are installed."""
    spec = importlib.util.find_spec("jax_plugins")
    if spec is None or spec.submodule_search_locations is None:
        return []
    return [module.name for module in pkgutil.iter_modules(spec.submodule_search_locations)]
