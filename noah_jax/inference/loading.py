"""Loads trained models from run folders, converted folders and PyTorch files."""

import difflib
import json
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from noah_jax.errors import MissingError
from noah_jax.models import create_model
from noah_jax.models.base import Model
from noah_jax.pytorch.load import load_torch
from noah_jax.runs.checkpoints import restore_model_with_step
from noah_jax.runs.run_dir import CHECKPOINTS, MODEL_FILE


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
      noah_jax.errors.CheckpointError: if no checkpoint can be used, or a folder holds no
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
        raise MissingError(f"{workdir} holds no {MODEL_FILE}, so no trained model{near}")
    facts = json.loads((workdir / MODEL_FILE).read_text())
    model = create_model(facts["name"], **facts["arguments"])
    params, stats = model.abstract()
    step, tree = restore_model_with_step(
        workdir / CHECKPOINTS, {"params": params, "stats": stats}, ema=ema, step=step
    )
    return step, model, tree["params"], tree.get("stats", {})
