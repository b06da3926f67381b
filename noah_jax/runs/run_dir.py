"""Reads and writes a run's folder: its configuration, its model's description and its results.

Nothing here knows of models or training: the folder holds JSON files and checkpoints.
"""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from noah_jax import console, distributed
from noah_jax.config import OPERATIONAL_KEYS, default_config, left_open
from noah_jax.config_names import RENAMED_KEYS, rename_old_keys
from noah_jax.errors import InputError
from noah_jax.files import make_folder, read_text, write_text

CONFIG_FILE = "config.json"
MODEL_FILE = "model.json"
DATA_FILE = "data.json"
RESULTS_FILE = "results.json"
CHECKPOINTS = "checkpoints"
PARAMETERS = "parameters.txt"  # The shape of every parameter, for people.

_WINDOW = "data.shuffle_window"
_NFS_SECONDS = 90  # NFS may remember for this long that a file does not exist.
_MAX_LISTED = 3


def read_config(workdir: epath.Path) -> dict[str, Any] | None:
    """Reads the configuration of a run, under the present names of its keys.

    Prints one warning line, on the first process, if the run was made when keys had other names.

    Returns:
      The configuration as nested dicts, or `None` if the folder has none.

    Raises:
      InputError: If the file is not JSON.
    """
    path = workdir / CONFIG_FILE
    if not path.exists():
        return None
    try:
        config = json.loads(read_text(path))
    except ValueError as error:
        raise InputError(f"{path} cannot be read ({error}); choose another --workdir") from error
    flat, old = rename_old_keys(flatten_dict(config, keep_empty_nodes=True, sep="."))
    if old and distributed.process_index() == 0:
        renamed = ", ".join(f"{key} is now {RENAMED_KEYS[key]}" for key in old)
        console.warn_once(f"{path} is of an earlier version: {renamed}")
    if flat.get(_WINDOW) is None:
        flat[_WINDOW] = (
            0  # The run chose no windows, and goes on without, whatever it could choose.
        )
    return unflatten_dict(flat, sep=".")


def check_config(workdir: epath.Path, config: Mapping[str, Any]) -> None:
    """Raises an InputError if the folder holds a run of another configuration.

    A key that the configuration leaves open fits whatever the run chose. A key that did not exist
    when the run was made had its default.

    Args:
      workdir: The folder. It need not exist and is not changed.
      config: The configuration of this run, as nested dicts.
    """
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"{workdir} is a file; --workdir must be a folder or a new name")
    saved_config = read_config(workdir)
    if saved_config is None:
        if (workdir / CHECKPOINTS).exists():
            raise InputError(
                f"{workdir} holds checkpoints but no {CONFIG_FILE}; choose another --workdir"
            )
        return
    defaults = json.loads(default_config().to_json_best_effort())
    saved = flatten_dict(defaults, sep=".") | flatten_dict(saved_config, sep=".")
    given = flatten_dict(json.loads(json.dumps(config)), sep=".")
    differing = [
        f"{key} is {saved.get(key)!r} there and {given.get(key)!r} here"
        for key in sorted(saved.keys() | given.keys())
        if key not in OPERATIONAL_KEYS
        and saved.get(key) != given.get(key)
        and not left_open(key, given)
    ]
    if differing:
        surplus = len(differing) - _MAX_LISTED
        more = f" (and {surplus} more)" if surplus > 0 else ""
        raise InputError(
            f"{workdir} holds a run of another configuration:"
            f" {'; '.join(differing[:_MAX_LISTED])}{more};"
            " choose another --workdir, or use that run's configuration"
        )


def read_results(workdir: epath.Path) -> dict[str, Any] | None:
    """Returns the results of a finished run, or `None` if it is not finished."""
    path = workdir / RESULTS_FILE
    return json.loads(read_text(path)) if path.exists() else None


def write_results(workdir: epath.Path, results: Mapping[str, Any]) -> None:
    """Writes the results on the first process, which marks the run as finished."""
    if jax.process_index() == 0:
        write_text(workdir / RESULTS_FILE, json.dumps(results, indent=2) + "\n")


def prepare_folder(
    workdir: epath.Path,
    config: Mapping[str, Any],
    *,
    model_name: str,
    model_arguments: Mapping[str, Any],
    class_names: Sequence[str],
    preprocessing: Mapping[str, Any],
    data: Mapping[str, Any],
) -> None:
    """Makes the folder and writes what a resumed run and `noah_jax.load_model` need.

    Args:
      workdir: The run's folder, the same for all processes.
      config: The configuration, as nested dicts.
      model_name: The model's registered name.
      model_arguments: The arguments that make the model.
      class_names: The classes, in the order of their indices.
      preprocessing: What the run's evaluation does to images, as `model.json` holds it.
      data: What the run's data are, see `noah_jax.data.record.record_data`.

    Raises:
      WriteError: If the folder cannot be made or written.
      InputError: If some process does not see what the first one wrote.
    """
    make_folder(workdir)
    if jax.process_index() == 0:
        description = {
            "name": model_name,
            "arguments": dict(model_arguments),
            "class_names": list(class_names),
            "preprocessing": dict(preprocessing),
        }
        write_text(workdir / MODEL_FILE, json.dumps(description, indent=2) + "\n")
        write_text(workdir / DATA_FILE, json.dumps(data) + "\n")
        write_text(workdir / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
    distributed.barrier("workdir")
    deadline = time.monotonic() + _NFS_SECONDS
    while not (workdir / CONFIG_FILE).exists():
        if time.monotonic() > deadline:
            raise InputError(
                f"{workdir} is another folder here than on process 0; --workdir must be shared"
            )
        time.sleep(1)
