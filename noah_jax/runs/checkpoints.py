"""Saves and restores checkpoints with Orbax, and verifies a checksum of every array.

Orbax saves asynchronously and atomically, but does not checksum what it stores, so a flipped bit
would be restored silently. Every array's checksum is therefore stored beside it and verified when
it is restored. A checkpoint that fails is set aside, and the next older one is used. Nothing here
knows of models: a state is a tree of arrays.
"""

import concurrent.futures
import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from flax import serialization
from orbax.checkpoint import checkpoint_managers

from noah_jax import distributed
from noah_jax.compilation import QUICK_COMPILE
from noah_jax.console import say
from noah_jax.errors import CheckpointError, WriteError, machine_error, one_line
from noah_jax.files import is_remote
from noah_jax.runs.background_errors import hush_background_errors

_REMOVALS, _REMOVAL_SECONDS = 5, 0.2
_MODEL_KEYS = ("params", "stats")
_FACTORS = (0x9E3779B1, 0x85EBCA77)  # Odd constants of the xxHash family.
_CHUNK = 2**15  # Values summed at a time, so that they and their weights fit a core's cache.
# The item of a checkpoint that holds the checksums. Runs have it on disk, so the name stays.
_CHECKSUMS = "digests"


class Checkpoints:
    """The checkpoints of one run, by step.

    Args:
      directory: A local or `gs://` folder, which is made when the first checkpoint is saved.
      keep: How many checkpoints to keep, the newest ones.
    """

    def __init__(self, directory: str | epath.Path, *, keep: int = 3) -> None:
        hush_background_errors()
        self._directory = _absolute(directory)
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.LatestN(keep),
                enable_async_checkpointing=True,
                create=True,
            ),
        )
        # It runs once a checkpoint, so compiling it quickly matters more than its speed.
        self._checksums = jax.jit(checksums, compiler_options=QUICK_COMPILE)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Starts to save a state; when it returns, the state's memory may be reused.

        Raises:
          WriteError: If it, or an earlier one in the background, cannot be written.
          Exception: Another error of an earlier save.
        """
        with self._explaining():
            self._manager.check_for_errors()
        sums = jax.device_get(self._checksums(state))
        sums = {path: [int(value) for value in values] for path, values in sums.items()}
        tree = serialization.to_state_dict(state)
        items = {name: ocp.args.StandardSave(part) for name, part in _parts(tree).items()}
        with self._explaining():
            self._manager.save(
                step,
                args=ocp.args.Composite(**items, **{_CHECKSUMS: ocp.args.JsonSave(sums)}),
                force=True,
            )

    def restore(self, abstract: dict[str, Any]) -> dict[str, Any] | None:
        """Restores the newest state that verifies; returns `None` if nothing was ever saved.

        Newer checkpoints, which are corrupt, are renamed to `damaged-STEP`.

        Args:
          abstract: The state as `jax.ShapeDtypeStruct`s with shardings.

        Raises:
          CheckpointError: If there are checkpoints and none can be used.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        corrupt: list[int] = []
        for step in steps:
            state, reason = None, ""
            try:
                state = self._restore_step(step, abstract)
            except Exception as error:  # Orbax raises many kinds of errors for corrupt files.
                reason = one_line(error, 200)
            # No process may go on from a checkpoint that another one cannot read.
            reasons = list(filter(None, distributed.gather(f"restored {step}", reason)))
            if reasons:
                say(f"checkpoint of step {step} cannot be used: {reasons[0]}")
                corrupt.append(step)
                continue
            if corrupt:
                say(f"going on from the older checkpoint of step {step}")
                self._set_aside(corrupt)
            return state
        if steps:
            raise CheckpointError(
                f"none of the checkpoints in {self._directory} (steps"
                f" {', '.join(map(str, steps))}) can be used; move the folder away to start anew"
            )
        return None

    def wait(self) -> None:
        """Waits until everything is saved; raises the error of a save that failed."""
        with self._explaining():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is saved and releases the threads."""
        with self._explaining():
            self._manager.close()

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        """Turns what the machine refuses into one line, and removes what is half-written."""
        try:
            yield
        except Exception as error:
            explained = machine_error(error)
            if explained is None:
                raise
            if not is_remote(self._directory) and jax.process_index() == 0:
                self._remove_unfinished()
            raise WriteError(
                f"no checkpoint can be saved in {self._directory}: {explained}"
            ) from error

    def _remove_unfinished(self) -> None:
        # Orbax does not wait for its other threads, which may still make files there.
        for _ in range(_REMOVALS):
            time.sleep(_REMOVAL_SECONDS)
            for unfinished in self._directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(unfinished, ignore_errors=True)

    def _restore_step(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        parts = _parts(serialization.to_state_dict(abstract))
        items = {name: ocp.args.StandardRestore(part) for name, part in parts.items()}
        restored = self._manager.restore(
            step, args=ocp.args.Composite(**items, **{_CHECKSUMS: ocp.args.JsonRestore()})
        )
        tree = {**restored["model"], **restored["training"]}
        if "ema" in parts:
            tree["ema"] = restored["ema"]
        state = serialization.from_state_dict(abstract, tree)
        _verify(jax.device_get(self._checksums(state)), restored[_CHECKSUMS])
        return state

    def _set_aside(self, steps: list[int]) -> None:
        if jax.process_index() == 0:
            for step in steps:
                target = self._directory / f"damaged-{step}"
                if target.exists():
                    target.rmtree()
                (self._directory / str(step)).rename(target)
        distributed.barrier("corrupt checkpoints set aside")
        self._manager.reload()


def save_model(directory: str | epath.Path, tree: dict[str, Any]) -> None:
    """Saves parameters and statistics alone, as the checkpoint of step 0, for `restore_model`.

    Args:
      directory: A new local or `gs://` folder of checkpoints.
      tree: `{"params": ..., "stats": ...}` of NumPy or JAX arrays; views of any layout will do.
    """
    hush_background_errors()
    step = epath.Path(directory) / "0"
    # Compressing weights saves hardly any space and holds another copy of them in memory. Orbax
    # copies NumPy arrays to guard against later changes, which nobody makes here.
    registry = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
        (jax.Array, ocp.type_handlers.ArrayHandler()),
    )
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        sums = pool.submit(host_checksums, tree)
        with contextlib.closing(ocp.Checkpointer(handler)) as checkpointer:
            checkpointer.save(step / "model", args=ocp.args.PyTreeSave(tree))
    with contextlib.closing(ocp.Checkpointer(ocp.JsonCheckpointHandler())) as writer:
        writer.save(step / _CHECKSUMS, args=ocp.args.JsonSave(sums.result()))


def saved_steps(directory: str | epath.Path) -> list[int]:
    """Returns the steps of the checkpoints, corrupt or not, in a folder that need not exist."""
    return sorted(m.step for m in ocp.path.step.standard_name_format().find_all(directory))


def restore_model(
    directory: str | epath.Path,
    abstract: dict[str, Any],
    *,
    ema: bool = False,
    step: int | None = None,
) -> tuple[int, dict[str, Any]]:
    """Restores parameters and statistics alone from the newest checkpoint that verifies.

    Args:
      directory: The folder of the checkpoints.
      abstract: `{"params": ..., "stats": ...}` as `jax.ShapeDtypeStruct`s.
      ema: Restore their moving average instead.
      step: Restore the checkpoint of this step or none.

    Returns:
      The step of the checkpoint, and the tree.

    Raises:
      CheckpointError: If there is none, or none can be used, or they hold no average.
    """
    directory = _absolute(directory)
    names = [p.name for p in directory.iterdir()] if directory.is_dir() else []
    steps = sorted((int(name) for name in names if name.isdigit()), reverse=True)
    if not steps:
        raise CheckpointError(f"{directory} holds no checkpoint")
    which = ""
    if step is not None:
        if step not in steps:
            raise CheckpointError(
                f"{directory} holds no checkpoint of step {step}; it has"
                f" {', '.join(map(str, reversed(steps)))}"
            )
        steps, which = [step], f" of step {step}"
    item = "ema" if ema else "model"
    if not any((directory / str(step) / item).exists() for step in steps):
        raise CheckpointError(
            f"the checkpoints in {directory} hold no {item} weights"
            + ("; without ema=True the raw ones are loaded" if ema else "")
        )
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract
    )
    for step in steps:
        try:
            with contextlib.closing(ocp.StandardCheckpointer()) as checkpointer:
                tree = checkpointer.restore(directory / str(step) / item, target)
            with contextlib.closing(ocp.Checkpointer(ocp.JsonCheckpointHandler())) as reader:
                expected = reader.restore(directory / str(step) / _CHECKSUMS)
            _verify(host_checksums({"ema": tree} if ema else tree), expected)
            return step, tree
        except Exception as error:  # Orbax raises many kinds of errors for corrupt files.
            failure = one_line(error, 200)
            if step != steps[-1]:
                logging.warning("checkpoint of step %d cannot be used: %s", step, failure)
    raise CheckpointError(f"no checkpoint{which} in {directory} can be used: {failure}")


def _absolute(directory: str | epath.Path) -> epath.Path:
    """Returns the absolute path, which Orbax requires."""
    return epath.Path(directory) if is_remote(directory) else epath.Path(directory).resolve()


def host_checksums(tree: Any) -> dict[str, list[int]]:
    """Returns what `checksums` does, computed by NumPy.

    A process that only loads a model would wait longer for the compilation of `checksums`. Both
    must agree, which tests/runs/test_checkpoints.py checks.
    """
    return {path: _host_checksum(np.asarray(leaf)) for path, leaf in _leaves(tree)}


def checksums(tree: Any) -> dict[str, jax.Array]:
    """Returns two 32-bit sums per array, over its bits weighed by position; can be jitted.

    Integer sums do not depend on their order, so neither sharding nor device count matter.
    Every weight is odd, so any single flipped bit changes both sums.
    """
    return {path: _checksum(leaf) for path, leaf in _leaves(tree)}


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_flatten_with_path(serialization.to_state_dict(tree))[0]:
        yield "/".join(str(k.key) for k in path), leaf


def _checksum(x: jax.Array) -> jax.Array:
    unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    bits = x.astype(unsigned) if x.dtype == bool else jax.lax.bitcast_convert_type(x, unsigned)
    bits = bits.astype(jnp.uint32)
    index = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        index = index * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    sums = []
    for factor in _FACTORS:
        sums.append((bits * _weight(index, factor)).sum(dtype=jnp.uint32))
    return jnp.stack(sums)


def _host_checksum(x: np.ndarray) -> list[int]:
    unsigned = np.dtype(f"uint{8 * x.dtype.itemsize}")
    x = np.ascontiguousarray(x).reshape(-1).view(unsigned)
    sums = [0] * len(_FACTORS)
    offsets = np.arange(_CHUNK, dtype=np.uint32)
    for start in range(0, x.size, _CHUNK):
        bits = x[start : start + _CHUNK].astype(np.uint32, copy=False)
        index = offsets[: bits.size] + np.uint32(start % 2**32)
        for i, factor in enumerate(_FACTORS):
            sums[i] += int((bits * _weight(index, factor)).sum(dtype=np.uint32))
    return [value % 2**32 for value in sums]


def _weight(index: Any, factor: int) -> Any:
    weight = (index ^ (index >> 15)) * np.uint32(factor)
    return (weight ^ (weight >> 13)) | np.uint32(1)


def _verify(actual: Mapping[str, Sequence[int]], expected: Mapping[str, list[int]]) -> None:
    bad = [path for path in actual if list(map(int, actual[path])) != expected.get(path)]
    if bad:
        raise CheckpointError(
            f"{len(bad)} array(s) differ from their checksum, such as {', '.join(bad[:3])}"
        )


def _parts(tree: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Splits a state into the items of a checkpoint: what only training needs stands apart."""
    parts = {
        "model": {key: tree[key] for key in _MODEL_KEYS},
        "training": {key: x for key, x in tree.items() if key not in (*_MODEL_KEYS, "ema")},
    }
    return parts | ({"ema": tree["ema"]} if "ema" in tree else {})
