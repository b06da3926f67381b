"""A run's folder: whose it is, whether it is finished, and loading a model from it."""

import difflib
import json
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from flax.traverse_util import flatten_dict

from noah_jax import distributed
from noah_jax.runs.checkpoints import restore_model_with_step
from noah_jax.config import OPERATIONAL_KEYS
from noah_jax.pytorch.load import load_torch
from noah_jax.models import create_model
from noah_jax.models.base import Model
from noah_jax.files import write_text
from noah_jax.errors import InputError

CONFIG_FILE = "config.json"
MODEL_FILE = "model.json"
RESULTS_FILE = "results.json"
CHECKPOINTS = "checkpoints"

_NFS_SECONDS = 90  # for which NFS may remember that a file was not there


def check(workdir: epath.Path, config: dict[str, Any]) -> None:
    """Raises a ValueError if the folder holds a run of another configuration.

    Args:
      workdir: the folder; need not exist, is not touched.
      config: the configuration of this run, as nested dicts.
    """
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"{workdir} is a file; --workdir must be a folder or a new name")
    path = workdir / CONFIG_FILE
    if not path.exists():
        if (workdir / CHECKPOINTS).exists():
            raise InputError(
                f"{workdir} holds checkpoints but no {CONFIG_FILE}; choose another --workdir"
            )
        return
    try:
        theirs = flatten_dict(json.loads(path.read_text()), sep=".")
    except ValueError as error:
        raise InputError(f"{path} cannot be read ({error}); choose another --workdir") from error
    ours = flatten_dict(json.loads(json.dumps(config)), sep=".")
    differing = [
        f"{key} is {theirs.get(key)!r} there and {ours.get(key)!r} here"
        for key in sorted(theirs.keys() | ours.keys())
        if key not in OPERATIONAL_KEYS and theirs.get(key) != ours.get(key)
    ]
    if differing:
        more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
        raise InputError(
            f"{workdir} holds a run of another configuration: {'; '.join(differing[:3])}{more};"
            " choose another --workdir, or use that run's configuration"
        )


def results(workdir: epath.Path) -> dict[str, Any] | None:
    """The results of a finished run, `None` if it is not finished."""
    path = workdir / RESULTS_FILE
    return json.loads(path.read_text()) if path.exists() else None


def prepare(
    workdir: epath.Path, config: dict[str, Any], model: Model, class_names: Sequence[str]
) -> None:
    """Makes the folder and writes what a later run, `load_model` and `Trained` need.

    Raises:
      ValueError: if the processes of a run do not all see what the first one wrote.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        facts = {"name": model.name, "arguments": model.arguments}
        facts["class_names"] = list(class_names)
        write_text(workdir / MODEL_FILE, json.dumps(facts, indent=2) + "\n")
        write_text(workdir / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
    distributed.barrier("workdir")
    patience = time.monotonic() + _NFS_SECONDS
    while not (workdir / CONFIG_FILE).exists():
        if time.monotonic() > patience:
            raise InputError(
                f"{workdir} is another folder here than on process 0; --workdir must be shared"
            )
        time.sleep(1)




