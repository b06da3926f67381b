"""Many processes: how they start, agree and speak; the mesh of devices and how arrays lie on it.

A process is a host of a TPU pod, or a GPU or a node of a GPU cluster. What the processes say to
one another besides the steps' collectives goes through the key-value store of the process with
index 0, which `jax.distributed` runs: it needs no device and waits for no step.
"""

import hashlib
import json
import math
import os
import pathlib
import re
import socket
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax._src.distributed import global_state
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from noah_jax.errors import InputError, JoinError

# Hosts of a pod may boot, and read the same data from a cold disk, at quite different times.
_PATIENCE_SECONDS = 1800
# What JAX says where it finds none, and where it was used before: in a notebook, or a test.
_ALONE = ("coordinator_address should be defined", "must be called before any JAX calls")
_MAX_LISTED = 3
# Smaller arrays are not worth an exchange of their own.
_LEAST_SHARDED = 2**14  # elements


def start(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Joins the other processes of the run, if there are any; before any array is made.

    With nothing given JAX looks for a TPU VM, SLURM, Open MPI or Kubernetes, and goes on alone
    where it finds none, or where this process has used JAX before. Under SLURM a process takes
    one GPU, or all of a node's where the node has a single process.

    Args:
      coordinator: `HOST:PORT` of the process with index 0, where JAX cannot find it.
      num_processes: how many there are; 1 alone looks for no others.
      process_id: this one's index.

    Raises:
      ValueError: if the arguments do not fit.
      JoinError: if the others cannot be reached within half an hour.
    """
    if num_processes == 1:
        return
    given = (bool(coordinator), num_processes > 0, process_id >= 0)
    if any(given) and not all(given):
        raise InputError(
            "--coordinator=HOST:PORT, --num_processes and --process_id are needed together"
        )
    arguments: dict[str, Any] = {"local_device_ids": _gpus_of_the_node()}
    if all(given):
        if ":" not in coordinator or process_id >= num_processes:
            raise InputError(
                f"expected --coordinator=HOST:PORT and --process_id below --num_processes, got"
                f" {coordinator!r}, process {process_id} of {num_processes}"
            )
        arguments |= {
            "coordinator_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(initialization_timeout=_PATIENCE_SECONDS, **arguments)
    except Exception as error:  # of JAX, a metadata server, Kubernetes
        if not any(given) and any(words in str(error) for words in _ALONE):
            return
        raise JoinError(
            f"the other processes cannot be joined: {error!r}; --coordinator, --num_processes and"
            " --process_id say where they are, --num_processes=1 that there are none"
        ) from error


def _gpus_of_the_node() -> list[int] | None:
    """All GPUs where SLURM runs one process a node; `None` leaves the choice to JAX."""
    one_task = re.fullmatch(r"1(\(x\d+\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    gpus = os.environ.get("SLURM_GPUS_ON_NODE", "")
    return list(range(int(gpus))) if one_task and gpus.isdigit() else None


def client() -> Any:
    """The key-value store and barriers of the run; `None` for a process alone."""
    return global_state.client if (global_state.num_processes or 1) > 1 else None


def process_index() -> int:
    """This process's index; makes no devices, as `jax.process_index` does."""
    return global_state.process_id


def process_name(index: int | None = None) -> str:
    """`process 3 of 8` of a run with several, empty for a process alone."""
    if client() is None:
        return ""
    index = process_index() if index is None else index
    return f"process {index} of {global_state.num_processes}"


def barrier(name: str) -> None:
    """Waits until every process is here. A name is used once in a run."""
    if (store := client()) is not None:
        store.wait_at_barrier(f"noah_jax/barrier/{name}", 1000 * _PATIENCE_SECONDS)


def gather(name: str, value: str) -> list[str]:
    """What every process says, by index; waits for all. A name is used once in a run."""
    if (store := client()) is None:
        return [value]
    key = f"noah_jax/gathered/{name}/"
    store.key_value_set(f"{key}{process_index():08}", value)
    barrier(name)
    return [text for _, text in sorted(store.key_value_dir_get(key))]


def check_equal(name: str, facts: Mapping[str, Any]) -> None:
    """Compares what should be the same everywhere with what process 0 has; waits for all.

    Args:
      name: of this comparison, used once in a run.
      facts: by what they are, in words; anything JSON takes.

    Raises:
      ValueError: on every process alike; names the processes, their hosts and what differs.
    """
    if (store := client()) is None:
        return
    key = f"noah_jax/compared/{name}"
    facts = json.loads(json.dumps(facts))
    if process_index() == 0:
        store.key_value_set(key, json.dumps(facts))
    first = json.loads(store.blocking_key_value_get(key, 1000 * _PATIENCE_SECONDS))
    differing = [
        f"{what} is {facts.get(what)!r}, {first.get(what)!r} on process 0"
        for what in sorted(facts.keys() | first.keys())
        if facts.get(what) != first.get(what)
    ]
    more = f" (and {len(differing) - _MAX_LISTED} more)" if len(differing) > _MAX_LISTED else ""
    listed = "; ".join(differing[:_MAX_LISTED]) + more
    complaints = gather(
        name, f"{process_name()} on {socket.gethostname()}: {listed}" if listed else ""
    )
    if found := [text for text in complaints if text]:
        more = f" (and {len(found) - _MAX_LISTED} more)" if len(found) > _MAX_LISTED else ""
        raise InputError(
            f"the processes differ. {'. '.join(found[:_MAX_LISTED])}{more}. All must run the same"
            " command with the same code on the same files"
        )


def code_version() -> str:
    """A digest of this package's source files."""
    digest = hashlib.sha256()
    root = pathlib.Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def machine_facts() -> dict[str, Any]:
    """What every host of a run should have alike, for `check_equal`."""
    return {
        "the code": code_version(),
        "JAX's version": jax.__version__,
        "Python's version": ".".join(map(str, sys.version_info[:2])),
        "the number of devices": jax.local_device_count(),
        "the kind of device": jax.local_devices()[0].device_kind,
    }


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """All devices (of all hosts) along one axis, `data`."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device: the state."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Split along the first axis: images."""
    return NamedSharding(mesh, PartitionSpec("data"))


def shared_out(tree: Any, mesh: Mesh) -> Any:
    """Shardings by which the devices share a state, for a tree of arrays or their shapes.

    Large arrays are split along the longest axis that the devices divide; small ones, and those
    without such an axis, are the same on every device.
    """

    def place(x):
        axes = [axis for axis, size in enumerate(x.shape) if size % mesh.size == 0]
        if x.size < _LEAST_SHARDED or not axes:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: x.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, "data"))

    return jax.tree.map(place, tree)


def device_bytes(tree: Any) -> int:
    """What arrays, or their shapes and shardings, take on one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This host's part of a batch as global arrays."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def check_batch_size(name: str, batch_size: int, mesh: Mesh) -> None:
    """Raises a ValueError unless the devices share the batch evenly."""
    if batch_size < 1 or batch_size % mesh.size:
        raise InputError(
            f"{name}={batch_size} must be a positive multiple of the {mesh.size} devices"
        )


def abstract_like(tree: Any, shardings: Any) -> Any:
    """Shapes and dtypes of a tree, placed by `shardings`: one, or a tree of them."""
    if isinstance(shardings, NamedSharding):
        one = shardings
        shardings = jax.tree.map(lambda _: one, tree)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )
