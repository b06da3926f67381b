"""Connects the processes of a run, and places arrays on the mesh of all their devices.

A process is a host of a TPU pod, or a GPU or a node of a GPU cluster. Apart from the collectives
inside the steps, the processes exchange texts through the key-value store that `jax.distributed`
runs in the process with index 0. The store needs no device and waits for no step.
"""

import hashlib
import json
import math
import os
import pathlib
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeVar, cast

import jax
from jax._src.distributed import global_state  # see `client`
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from noah_jax.errors import InputError, JoinError

Batch = TypeVar("Batch", bound=Mapping[str, Any])

# Hosts of a pod may boot, and read the same data from a cold disk, at quite different times.
_PATIENCE_SECONDS = 1800
# What JAX says if it finds no other processes, if it was used before, as in a notebook, or if it
# cannot find those of Open MPI 5.
_NO_CLUSTER = "coordinator_address should be defined"
_ALONE = (_NO_CLUSTER, "must be called before any JAX calls", "requires mpi4py")
_MAX_LISTED = 3
# Smaller arrays are replicated, because they are not worth an exchange of their own.
_MIN_SHARDED_ELEMENTS = 2**14


def start(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Joins the other processes of the run, if there are any; call it before any array is made.

    Without arguments JAX looks for a TPU VM, SLURM, Open MPI or Kubernetes, and asks mpi4py under
    any other MPI. It goes on alone if it finds none, or if this process has used JAX before, but
    not if a launcher has started several processes: each would train the whole run. Under SLURM
    a process takes one GPU, or all GPUs of a node that has a single process.

    Args:
      coordinator: `HOST:PORT` of the process with index 0, if JAX cannot find it.
      num_processes: Number of processes; 1 looks for no others.
      process_id: Index of this process.

    Raises:
      InputError: If the arguments do not fit, or JAX does not find the other processes of a
        launcher; says what helps.
      JoinError: If the others cannot be reached within half an hour.
    """
    if num_processes == 1:
        return
    given = (bool(coordinator), num_processes > 0, process_id >= 0)
    if any(given) and not all(given):
        raise InputError(
            "--coordinator=HOST:PORT, --num_processes and --process_id are needed together"
        )
    arguments: dict[str, Any] = {"local_device_ids": _gpus_of_the_node()}
    if not any(given) and "SLURM_STEP_ID" in os.environ and not _is_step_of_srun():
        # A shell that salloc opened. JAX would take it for one of the job's tasks, and wait.
        if not _mpi4py_knows():
            return _check_alone()
        arguments["cluster_detection_method"] = "mpi4py"
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
        _join(arguments)
    except Exception as error:  # JAX, a metadata server and Kubernetes have errors of their own.
        if any(given) or not any(words in str(error) for words in _ALONE):
            raise JoinError(
                f"the other processes cannot be joined: {error!r}; --coordinator, --num_processes"
                " and --process_id say where they are, --num_processes=1 that there are none"
            ) from error
    if client() is None and not any(given):
        _check_alone()


def _join(arguments: dict[str, Any]) -> None:
    """Lets JAX find the other processes; it raises an error if there are none."""
    arguments["initialization_timeout"] = _PATIENCE_SECONDS
    try:
        jax.distributed.initialize(**arguments)
    except ValueError as error:
        if _NO_CLUSTER not in str(error) or not _mpi4py_knows():
            raise
        # JAX does not find every MPI by itself, and asks mpi4py only where it is told to.
        jax.distributed.initialize(**arguments | {"cluster_detection_method": "mpi4py"})


class Launch(NamedTuple):
    """What a launcher tells the processes that it starts.

    Attributes:
      launcher: Name of the launcher.
      processes: Number of processes that it has started.
      variable: The environment variable that says so.
      is_mpi: Whether mpi4py knows the processes.
    """

    launcher: str
    processes: int
    variable: str
    is_mpi: bool


# The variables that give the number of processes, the best first, and the index of this one.
_LAUNCHERS = (
    ("Open MPI", ("OMPI_COMM_WORLD_SIZE",), "OMPI_COMM_WORLD_RANK", True),
    ("MVAPICH", ("MV2_COMM_WORLD_SIZE",), "MV2_COMM_WORLD_RANK", True),
    ("MPI", ("PMI_SIZE",), "PMI_RANK", True),
    ("torchrun", ("WORLD_SIZE",), "LOCAL_RANK", False),
    ("SLURM's srun", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), "SLURM_PROCID", False),
)
# Step numbers from here on are not srun's: a batch script's, or those of the shell of salloc.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0


def launched() -> Launch | None:
    """Returns what the launcher of this process tells; `None` if there is none."""
    launches = []
    for launcher, sizes, rank, is_mpi in _LAUNCHERS:
        size = next((name for name in sizes if os.environ.get(name, "").isdigit()), None)
        if size is None or rank not in os.environ:
            continue
        # Batch scripts and shells of SLURM have its variables too, but one process.
        if rank != "SLURM_PROCID" or _is_step_of_srun():
            launches.append(Launch(launcher, int(os.environ[size]), size, is_mpi))
    # An inner launcher may have started several where an outer one started one.
    return max(launches, key=lambda launch: launch.processes, default=None)


def _mpi4py_knows() -> bool:
    """Returns whether mpi4py is there to say which processes an MPI has started."""
    launch = launched()
    started = launch is not None and launch.is_mpi and launch.processes > 1
    return started and find_spec("mpi4py") is not None


def _is_step_of_srun() -> bool:
    step = os.environ.get("SLURM_STEP_ID", "")
    return step.isdigit() and int(step) < _FIRST_SPECIAL_STEP


def _check_alone() -> None:
    """Checks that no launcher has started other processes.

    Raises:
      InputError: If one has.
    """
    launch = launched()
    if launch is None or launch.processes == 1:
        return
    if not launch.is_mpi:
        remedy = ""
    elif find_spec("mpi4py") is None:
        remedy = "run `pip install mpi4py`, or "
    else:
        remedy = "reinstall mpi4py for the MPI that started them, or "
    raise InputError(
        f"{launch.launcher} started {launch.processes} processes"
        f" ({launch.variable}={launch.processes}), but JAX {jax.__version__} finds only this one,"
        f" and each would train the whole run: {remedy}give --coordinator=HOST:PORT,"
        " --num_processes and --process_id; for separate runs give --num_processes=1 and each its"
        " own --workdir"
    )


def _gpus_of_the_node() -> list[int] | None:
    """Returns all GPUs if SLURM runs one process a node; `None` leaves the choice to JAX."""
    one_task = re.fullmatch(r"1(\(x\d+\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    gpus = os.environ.get("SLURM_GPUS_ON_NODE", "")
    return list(range(int(gpus))) if one_task and gpus.isdigit() else None


def client() -> Any:
    """Returns the key-value store and barriers of the run; `None` for a single process.

    JAX has no public access to them, so this module imports a private one. The test
    tests/test_distributed.py says what to look at if JAX moves it.
    """
    return global_state.client if (global_state.num_processes or 1) > 1 else None


def process_index() -> int:
    """Returns this process's index without creating devices, which `jax.process_index` does."""
    return global_state.process_id


def process_name(index: int | None = None) -> str:
    """Returns "process 3 of 8" in a run of several processes, and "" in a single process."""
    if client() is None:
        return ""
    index = process_index() if index is None else index
    return f"process {index} of {global_state.num_processes}"


def barrier(name: str) -> None:
    """Waits until every process is here. A name may be used only once in a run."""
    if (store := client()) is not None:
        store.wait_at_barrier(f"noah_jax/barrier/{name}", 1000 * _PATIENCE_SECONDS)


def gather(name: str, value: str) -> list[str]:
    """Returns the value of every process, by index; waits for all.

    A name may be used only once in a run.
    """
    if (store := client()) is None:
        return [value]
    key = f"noah_jax/gathered/{name}/"
    store.key_value_set(f"{key}{process_index():08}", value)
    barrier(name)
    return [text for _, text in sorted(store.key_value_dir_get(key))]


def check_equal(name: str, metadata: Mapping[str, Any]) -> None:
    """Checks that every process has the same metadata as process 0; waits for all.

    Args:
      name: Name of this check, which may be used only once in a run.
      metadata: Values that JSON can hold; the keys say in words what they are.

    Raises:
      InputError: On every process, if any differs; names the processes, their hosts and what
        differs.
    """
    if (store := client()) is None:
        return
    key = f"noah_jax/compared/{name}"
    own = json.loads(json.dumps(metadata))
    if process_index() == 0:
        store.key_value_set(key, json.dumps(own))
    first = json.loads(store.blocking_key_value_get(key, 1000 * _PATIENCE_SECONDS))
    differing = [
        f"{what} is {own.get(what)!r}, {first.get(what)!r} on process 0"
        for what in sorted(own.keys() | first.keys())
        if own.get(what) != first.get(what)
    ]
    more = f" (and {len(differing) - _MAX_LISTED} more)" if len(differing) > _MAX_LISTED else ""
    listed = "; ".join(differing[:_MAX_LISTED]) + more
    complaint = f"{process_name()} on {socket.gethostname()}: {listed}" if listed else ""
    if complaints := [text for text in gather(name, complaint) if text]:
        surplus = len(complaints) - _MAX_LISTED
        more = f" (and {surplus} more)" if surplus > 0 else ""
        raise InputError(
            f"the processes differ. {'. '.join(complaints[:_MAX_LISTED])}{more}. All must run the"
            " same command with the same code on the same files"
        )


def code_version() -> str:
    """Returns a checksum of this package's source files."""
    checksum = hashlib.sha256()
    root = pathlib.Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        checksum.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return checksum.hexdigest()[:12]


def machine_metadata() -> dict[str, Any]:
    """Returns what the hosts of a run must have in common, for `check_equal`."""
    return {
        "the code": code_version(),
        "JAX's version": jax.__version__,
        "Python's version": ".".join(map(str, sys.version_info[:2])),
        "the number of devices": jax.local_device_count(),
        "the kind of device": jax.local_devices()[0].device_kind,
    }


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """Makes a mesh of all devices of all hosts, or of the given ones, with the one axis `data`."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds as a whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch, which the devices split along its first axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def sharded(tree: Any, mesh: Mesh) -> Any:
    """Returns the shardings of a state that the devices share.

    Large arrays are split along the longest axis that the number of devices divides. Small ones,
    and those without such an axis, are replicated.

    Args:
      tree: The state: arrays or anything else with `.shape` and `.size`.
      mesh: The devices.
    """

    def place(x: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(x.shape) if size % mesh.size == 0]
        if x.size < _MIN_SHARDED_ELEMENTS or not axes:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: x.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, "data"))

    return jax.tree.map(place, tree)


def device_bytes(tree: Any) -> int:
    """Returns the bytes that a tree of arrays, or of shapes with shardings, takes on one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Places this host's rows of a batch on its devices, as shards of global arrays.

    JAX's own arrays are taken as they are.
    """
    sharding = batch_sharding(mesh)

    def place(rows: Any) -> jax.Array:
        if isinstance(rows, jax.Array):
            return rows
        return jax.make_array_from_process_local_data(sharding, rows)

    return cast(Batch, {key: place(rows) for key, rows in batch.items()})


def row_devices(mesh: Mesh) -> list[jax.Device]:
    """Returns this host's devices, in the order in which `put_batch` gives them their rows."""
    rows = batch_sharding(mesh).addressable_devices_indices_map((mesh.size,))
    return sorted(rows, key=lambda device: cast(tuple[slice, ...], rows[device])[0].start or 0)


def join_shards(shards: Sequence[jax.Array], mesh: Mesh) -> jax.Array:
    """Makes a global array of its shards on the devices of `row_devices`, without a copy."""
    shape = (shards[0].shape[0] * mesh.size, *shards[0].shape[1:])
    return jax.make_array_from_single_device_arrays(shape, batch_sharding(mesh), list(shards))


def check_batch_size(name: str, batch_size: int, mesh: Mesh) -> None:
    """Raises an InputError unless every device gets the same number of the batch's images."""
    if batch_size < 1 or batch_size % mesh.size:
        raise InputError(
            f"{name}={batch_size} must be a positive multiple of the {mesh.size} devices"
        )


def abstract_like(tree: Any, shardings: Any) -> Any:
    """Returns the shapes and dtypes of a tree with their shardings: one for all, or a tree."""
    if isinstance(shardings, NamedSharding):
        one = shardings
        shardings = jax.tree.map(lambda _: one, tree)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )
