"""Loads trained models from run folders, converted folders and PyTorch files."""

import difflib
import json
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from noah_jax.errors import MissingError, ReadError
from noah_jax.models import create_model
from noah_jax.models.base import Model, Tree
from noah_jax.pytorch.load import load_torch
from noah_jax.runs.checkpoints import restore_model
from noah_jax.runs.run_dir import CHECKPOINTS, MODEL_FILE


def load_model(path: str, *, ema: bool = False) -> tuple[Model, Tree, Tree]:
    """Loads a trained model and its weights.

    Example:
      Normally the folder comes from `noah-jax train` or `noah-jax convert`. Here it is written by
      hand, with a tiny model in it.

      >>> import json, pathlib, tempfile
      >>> import jax, numpy
      >>> from noah_jax import create_model, load_model
      >>> from noah_jax.runs.checkpoints import save_model
      >>> tiny = create_model("mixer_s16_224", num_classes=3, image_size=32, width=8, depth=1)
      >>> params, stats = tiny.init(jax.random.key(0))
      >>> folder = tempfile.TemporaryDirectory()
      >>> save_model(f"{folder.name}/checkpoints", {"params": params, "stats": stats})
      >>> description = {"name": tiny.name, "arguments": tiny.arguments}
      >>> _ = pathlib.Path(folder.name, "model.json").write_text(json.dumps(description))

      Loading and using it is two lines. uint8 images are normalised by the model's own mean and
      standard deviation.

      >>> model, params, stats = load_model(folder.name)
      >>> images = numpy.zeros((2, *model.image_size, 3), numpy.uint8)
      >>> model.predict(params, stats, images).shape
      (2, 3)
      >>> folder.cleanup()

    Args:
      path: The `--workdir` of a training run, or a folder written by `noah-jax convert`, each
        local or `gs://`. Or a local `.pth` or `.safetensors` file from PyTorch, whose model is
        inferred from its keys and shapes.
      ema: Load the exponential moving average of the weights instead of the raw weights.

    Returns:
      `(model, params, stats)`. `model.predict(params, stats, images)` gives the logits of
      `[batch, height, width, 3]` images.

    Raises:
      FileNotFoundError: If the folder does not exist or holds no model.
      noah_jax.errors.CheckpointError: If no checkpoint can be used, or if the folder holds no
        moving average.
      ValueError: If a file cannot be read or holds no moving average, or if no registered model
        fits it.
    """
    return load_with_step(path, ema=ema)[1:]


def load_with_step(
    path: str, *, ema: bool = False, step: int | None = None
) -> tuple[int, Model, Tree, Tree]:
    """Loads a trained model as `load_model` does, and says from which training step.

    Args:
      path: See `load_model`.
      ema: See `load_model`.
      step: Step of the checkpoint to load; `None` loads the newest one that can be used.

    Returns:
      `(step, model, params, stats)`; the step is 0 for weights from PyTorch.

    Raises:
      FileNotFoundError, ValueError, CheckpointError: See `load_model`. A `CheckpointError` also if
        there is no checkpoint of that step.
    """
    folder = epath.Path(path)
    if folder.is_file():
        loaded = load_torch(path, ema=ema)
        return 0, loaded.model, *jax.tree.map(jnp.asarray, (loaded.params, loaded.stats))
    if not (folder / MODEL_FILE).exists():
        raise MissingError(
            f"{folder} holds no {MODEL_FILE}, so no trained model{_similar_folder(folder)}"
        )
    description = read_description(folder)
    model = create_model(description["name"], **description["arguments"])
    params, stats = model.abstract()
    step, tree = restore_model(
        folder / CHECKPOINTS, {"params": params, "stats": stats}, ema=ema, step=step
    )
    return step, model, tree["params"], tree.get("stats", {})


def read_description(folder: epath.Path) -> dict[str, Any]:
    """Reads a folder's `model.json`: the model's `name`, its `arguments` and other metadata.

    Raises:
      ReadError: If the file cannot be read or is not such a description.
    """
    path = folder / MODEL_FILE
    try:
        description = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ReadError(f"{path} cannot be read: {error}") from error
    if not isinstance(description, dict) or not {"name", "arguments"} <= description.keys():
        raise ReadError(f"{path} does not describe a model by its name and arguments")
    return description


def _similar_folder(folder: epath.Path) -> str:
    """Returns a question to append to an error, if a model's folder nearby has a similar name."""
    if not folder.parent.is_dir():
        return ""
    names = [path.name for path in folder.parent.iterdir() if (path / MODEL_FILE).exists()]
    close = difflib.get_close_matches(folder.name, names, n=1)
    return f"; did you mean {folder.parent / close[0]}?" if close else ""
