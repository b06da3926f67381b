"""Names the machines that XLA can compile for; none of them has to be here."""

import dataclasses
import importlib.util
import os
import re

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from noah_jax.errors import InputError
from noah_jax.nn.cudnn_attention import cudnn_is_missing

_GIB = 2**30

# HBM of a device in GiB. XLA keeps some of it for itself. A v7x chip has two devices of one core.
_TPU_HBM = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32, "v7x": 96}
# Without this option a v4 chip counts as two devices of one core each.
_MEGACORE = {"chip_config_name": "megacore", "num_slices": 1, "wrap": (False,) * 3}

# libtpu must not look for a TPU, may be open in another process too, and must not log that it finds
# neither a worker nor a type of accelerator.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}

_H100_MEMORY = 84_942_979_072  # bytes
_H100_PER_HOST = 8
# Description of an H100 SXM with 80 GB for XLA's compiler, a GpuTargetConfigProto.
_H100 = f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: {_H100_MEMORY}
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 }}
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True)
class Target:
    """A machine to compile for.

    Attributes:
      name: Name of the machine on the command line, such as "v5e:16x16".
      platform: "tpu", "cuda" or "cpu".
      devices: Devices for a mesh; nothing can run on them.
      memory: Bytes that a program may take on each device.
      notes: Sentences on what the figures leave out.
    """

    name: str
    platform: str
    devices: list[jax.Device]
    memory: int
    notes: tuple[str, ...] = ()


def open_targets(names: list[str]) -> list[Target]:
    """Returns the machines of these names.

    Call it before JAX does anything else in this process.

    Args:
      names: Each "v4:", "v5e:", "v5p:", "v6e:" or "v7x:" and the chips along each axis, such as
        "v5e:16x16"; or "h100:8" or "cpu:8".

    Raises:
      InputError: If a name is unknown, or the compiler for it is not installed.
    """
    kinds = [_parse(name) for name in names]
    jax.config.update("jax_platforms", "cpu")  # nothing runs, so accelerators stay free
    cpus = [int(size) for kind, size in kinds if kind == "cpu"]
    if cpus:
        jax.config.update("jax_num_cpu_devices", max(cpus))
    makers = {"cpu": _cpu, "h100": _h100}
    return [makers.get(kind, _tpu)(name) for name, (kind, _) in zip(names, kinds, strict=True)]


def topology_mesh(name: str) -> Mesh:
    """Returns all devices of a machine along one axis, `data`; see `open_targets`."""
    (target,) = open_targets([name])
    return Mesh(np.array(target.devices).reshape(-1), ("data",))


def _parse(name: str) -> tuple[str, str]:
    kind, _, size = name.partition(":")
    pattern = r"[1-9]\d*" if kind in ("cpu", "h100") else r"[1-9]\d*(x[1-9]\d*){1,2}"
    if kind not in (*_TPU_HBM, "cpu", "h100") or not re.fullmatch(pattern, size):
        raise InputError(
            f"--topology {name!r} is unknown; it is v4:2x2x4, v5p:2x2x4, v7x:2x2x4, v5e:16x16 or"
            " v6e:16x16, with the chips along each axis, h100:8 or cpu:8"
        )
    return kind, size


def _tpu(name: str) -> Target:
    kind, size = _parse(name)
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(f"{name} needs the TPU's compiler: pip install libtpu")
    for key, value in _LIBTPU.items():
        os.environ.setdefault(key, value)
    chips = [int(length) for length in size.split("x")]
    per_host = [min(length, 2) for length in chips[:2]] + [1]
    options = {"chips_per_host_bounds": tuple(per_host)} | (_MEGACORE if kind == "v4" else {})
    try:
        topology = topologies.get_topology_desc(
            platform="tpu", topology_name=name.replace("v7x:", "tpu7x:"), **options
        )
    except jax.errors.JaxRuntimeError as error:
        raise InputError(f"--topology {name}: {error}") from error
    return Target(
        name,
        "tpu",
        topology.devices,
        _TPU_HBM[kind] * _GIB,
        notes=(
            "cycles are XLA's estimate, which does not see what overlaps, and the head's kernels'"
            " instructions",
        ),
    )


def _h100(name: str) -> Target:
    count = int(_parse(name)[1])
    if count > _H100_PER_HOST and count % _H100_PER_HOST:
        raise InputError(f"--topology {name}: hosts have {_H100_PER_HOST} H100 each")
    per_host = min(count, _H100_PER_HOST)
    try:
        topology = topologies.get_topology_desc(
            platform="cuda", target_config=_H100, topology=f"1x{count // per_host}x{per_host}"
        )
    except NotImplementedError as error:
        raise InputError(
            f"{name} needs XLA's compiler for GPUs: pip install 'jax[cuda13]'"
            " (jax-cuda13-plugin alone will do)"
        ) from error
    missing = (
        "without cuDNN (pip install nvidia-cudnn-cu13) attention is compiled in its plain form"
    )
    return Target(
        name,
        "cuda",
        topology.devices,
        # JAX takes three quarters of a GPU's memory, unless told otherwise.
        int(0.75 * _H100_MEMORY),
        notes=(
            "memory is a lower bound: without a GPU XLA tunes nothing and knows no workspace"
            " of cuDNN",
            "the limit is the 75 % of the memory that JAX takes"
            " (XLA_PYTHON_CLIENT_MEM_FRACTION changes it)",
            "FLOPs are those of the program before XLA optimises it; loops count once",
            *([missing] if cudnn_is_missing() else []),
        ),
    )


def _cpu(name: str) -> Target:
    count = int(_parse(name)[1])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Target(
        name,
        "cpu",
        jax.devices("cpu")[:count],
        memory // count,
        notes=(f"the limit is this machine's memory, shared by {count} devices",),
    )
