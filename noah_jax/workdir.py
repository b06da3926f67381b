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
from noah_jax.checkpoint import restore_model_with_step
from noah_jax.config import OPERATIONAL_KEYS
from noah_jax.convert.load import load_torch
from noah_jax.models import create_model
from noah_jax.models.base import Model
from noah_jax.report import write_text

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
        raise ValueError(f"{workdir} is a file; --workdir must be a folder or a new name")
    path = workdir / CONFIG_FILE
    if not path.exists():
        if (workdir / CHECKPOINTS).exists():
            raise ValueError(
                f"{workdir} holds checkpoints but no {CONFIG_FILE}; choose another --workdir"
            )
        return
    try:
        theirs = flatten_dict(json.loads(path.read_text()), sep=".")
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); choose another --workdir") from error
    ours = flatten_dict(json.loads(json.dumps(config)), sep=".")
    differing = [
        f"{key} is {theirs.get(key)!r} there and {ours.get(key)!r} here"
        for key in sorted(theirs.keys() | ours.keys())
        if key not in OPERATIONAL_KEYS and theirs.get(key) != ours.get(key)
    ]
    if differing:
        more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
        raise ValueError(
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
            raise ValueError(
                f"{workdir} is another folder here than on process 0; --workdir must be shared"
            )
        time.sleep(1)


def load_model(path: str, *, ema: bool = False) -> tuple[Model, dict[str, Any], dict[str, Any]]:
    """A trained model and its weights, from a run's folder or a PyTorch file.

    Args:
      path: the `--workdir` of a training run or a folder that `convert_torch_weights.py` made,
        local or `gs://`; or a local `.pth` or `.safetensors` file, whose model is found as the
        converter finds it.
      ema: take the moving average of the weights, not the raw ones.

    Returns:
      `(model, params, stats)`, so that
      `model.apply(params, stats, images, train=False)[0]` are the logits.

    Raises:
      FileNotFoundError: if the folder holds no model.
      noah_jax.checkpoint.CheckpointError: if no checkpoint can be used, or a folder holds no
        moving average.
      ValueError: if a file cannot be read or holds no moving average, or no registered model
        fits it.
    """
    return load_with_step(path, ema=ema)[1:]


def load_with_step(
    path: str, *, ema: bool = False, step: int | None = None
) -> tuple[int, Model, dict[str, Any], dict[str, Any]]:
    """What `load_model` gives, after the step of the checkpoint; 0 for weights from PyTorch.

    With `step` it is that checkpoint's or an error.
    """
    workdir = epath.Path(path)
    if workdir.is_file():
        loaded = load_torch(path, ema=ema)
        return 0, loaded.model, *jax.tree.map(jnp.asarray, (loaded.params, loaded.stats))
    if not (workdir / MODEL_FILE).exists():
        near = ""
        if workdir.parent.is_dir():
            names = [p.name for p in workdir.parent.iterdir() if (p / MODEL_FILE).exists()]
            close = difflib.get_close_matches(workdir.name, names, n=1)
            near = f"; did you mean {workdir.parent / close[0]}?" if close else ""
        raise FileNotFoundError(f"{workdir} holds no {MODEL_FILE}, so no trained model{near}")
    facts = json.loads((workdir / MODEL_FILE).read_text())
    model = create_model(facts["name"], **facts["arguments"])
    params, stats = model.abstract()
    step, tree = restore_model_with_step(
        workdir / CHECKPOINTS, {"params": params, "stats": stats}, ema=ema, step=step
    )
    return step, model, tree["params"], tree.get("stats", {})
