"""Loads trained models from run folders, converted folders and PyTorch files."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from flax.traverse_util import flatten_dict

from noah_jax.data.preprocessing import Preprocessing
from noah_jax.errors import MissingError, ReadError, near_matches
from noah_jax.files import read_text
from noah_jax.hub.resolve import local_checkpoint
from noah_jax.inference.description import describe_model
from noah_jax.models import create_model
from noah_jax.models.base import Model, Tree
from noah_jax.models.create import NOAH_ARGUMENTS
from noah_jax.models.finite import check_finite
from noah_jax.models.pretrained import preprocessing_of
from noah_jax.paths import expand_home
from noah_jax.pytorch.load import LoadedModel, load_torch
from noah_jax.runs.checkpoints import restore_model
from noah_jax.runs.run_dir import CHECKPOINTS, MODEL_FILE, read_config


class Loaded(NamedTuple):
    """A trained model and what its folder says.

    Attributes:
      step: Training step of the checkpoint; 0 for weights from PyTorch.
      model: The model, with the preprocessing and the class names of the weights.
      params: The parameters.
      stats: BatchNorm's statistics.
      metadata: The contents of `model.json`; empty for a PyTorch file, unless the `config.json`
        beside it holds them.
      config: The configuration of the training, of averaged weights the part that evaluation needs;
        empty for converted weights.
    """

    step: int
    model: Model
    params: Tree
    stats: Tree
    metadata: dict[str, Any]
    config: dict[str, Any]


_MAX_LISTED = 5


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
        inferred from its keys and shapes. Or what is downloaded once and kept:
        `hf://USER/NAME[@REVISION]`, a repository of Hugging Face as timm writes it,
        `released://NAME`, a checkpoint that NOAH's authors released, and an address
        `https://.../NAME-CHECKSUM.pth`, as torchvision's weights have.
      ema: Load the exponential moving average of the weights instead of the raw weights.

    Returns:
      `(model, params, stats)`. `model.predict(params, stats, images)` gives the logits of
      `[batch, height, width, 3]` images. `model.mean`, `model.std` and `model.preprocessing` are
      what these weights were trained or converted with, `model.class_names` the names of the
      classes, or `None` where they are not known.

    Raises:
      FileNotFoundError: If the folder does not exist or holds no model.
      noah_jax.errors.CheckpointError: If no checkpoint can be used, or if the folder holds no
        moving average.
      ValueError: If a file cannot be read or downloaded, or holds no moving average, if no
        registered model fits it, or if weights are not finite.
      noah_jax.errors.MissingPackageError: If a name needs a package that is not installed.
    """
    loaded = load_with_step(path, ema=ema)
    return loaded.model, loaded.params, loaded.stats


def load_with_step(
    path: str,
    *,
    ema: bool = False,
    step: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Loaded:
    """Loads a trained model as `load_model` does, and says from which training step.

    Args:
      path: See `load_model`.
      ema: See `load_model`.
      step: Step of the checkpoint to load; `None` loads the newest one that can be used.
      settings: Preprocessing that replaces what is stored with the weights, see
        `noah_jax.data.preprocessing.check_setting`.

    Raises:
      FileNotFoundError, ValueError, CheckpointError: See `load_model`. A `CheckpointError` also if
        there is no checkpoint of that step, a `ValueError` also if a setting does not fit.
    """
    path = expand_home(path)
    folder = epath.Path(local_checkpoint(path))
    if folder.is_file():
        loaded = load_torch(folder, ema=ema)
        describe_weights(loaded, path, settings or {})
        params, stats = jax.tree.map(jnp.asarray, (loaded.params, loaded.stats))
        metadata = dict(loaded.config.own)
        config = metadata.get("training") or {}
        return Loaded(0, loaded.model, params, stats, metadata, config)
    model, description, config = _described(folder, path, settings or {})
    params, stats = model.abstract()
    step, tree = restore_model(
        folder / CHECKPOINTS, {"params": params, "stats": stats}, ema=ema, step=step
    )
    check_finite(flatten_dict(tree, sep="/"), f"step {step} of {folder}" if step else path)
    return Loaded(step, model, tree["params"], tree.get("stats", {}), description, config)


def describe_weights(loaded: LoadedModel, path: str, settings: Mapping[str, Any]) -> Preprocessing:
    """Gives the model of a PyTorch file its preprocessing and class names; returns the former.

    Args:
      loaded: The model.
      path: What the user named.
      settings: What the user gives, see `noah_jax.data.preprocessing.check_setting`.

    Raises:
      InputError: If a setting, or what timm says of the weights, does not fit.
    """
    return describe_model(
        loaded.model,
        metadata=loaded.config.own,
        config={},
        settings=settings,
        path=path,
        pretrained_cfg=loaded.config.pretrained_cfg,
        class_names=loaded.config.class_names,
        published=preprocessing_of(path),
    )


def load_description(path: str) -> Model:
    """Makes the model that `load_model` would load, with its preprocessing.

    The weights in a folder are not read.

    Raises:
      FileNotFoundError, ValueError: See `load_model`.
    """
    path = expand_home(path)
    folder = epath.Path(local_checkpoint(path))
    if folder.is_file():
        loaded = load_torch(folder)
        describe_weights(loaded, path, {})
        return loaded.model
    return _described(folder, path, {})[0]


def read_description(folder: epath.Path) -> dict[str, Any]:
    """Reads a folder's `model.json`: the model's `name`, its `arguments` and other metadata.

    Raises:
      ReadError: If the file cannot be read or is not such a description.
    """
    path = folder / MODEL_FILE
    try:
        description = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ReadError(f"{path} cannot be read: it is not JSON ({error})") from error
    if not isinstance(description, dict) or not {"name", "arguments"} <= description.keys():
        raise ReadError(f"{path} does not describe a model by its name and arguments")
    return description


def _described(
    folder: epath.Path, path: str, settings: Mapping[str, Any]
) -> tuple[Model, dict[str, Any], dict[str, Any]]:
    """Returns the model of a folder, what describes it and the configuration of its training."""
    if not (folder / MODEL_FILE).exists():
        raise MissingError(
            f"{folder} holds no {MODEL_FILE}, so no trained model{_what_is_there(folder)}"
        )
    description = read_description(folder)
    config = read_config(folder) or description.get("training") or {}
    model = create_model(description["name"], **_own_arguments(description["arguments"]))
    describe_model(
        model,
        metadata=description,
        config=config,
        settings=settings,
        path=path,
    )
    return model, description, config


def _own_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a model's arguments; earlier versions wrote NOAH's for a linear head too."""
    linear = arguments.get("head") == "linear"
    return {k: x for k, x in arguments.items() if not (linear and k in NOAH_ARGUMENTS)}


def _what_is_there(folder: epath.Path) -> str:
    """Says what a folder without a model holds, or which model's folder has a name like it."""
    if folder.is_dir():
        names = sorted(path.name for path in folder.iterdir())
        more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
        return f"; it holds {', '.join(names[:_MAX_LISTED]) or 'nothing'}{more}"
    if not folder.parent.is_dir():
        return f"; there is no folder {folder.parent}"
    models = [path.name for path in folder.parent.iterdir() if (path / MODEL_FILE).exists()]
    near = near_matches(folder.name, models)
    return f"; did you mean {folder.parent / near[0]}?" if near else "; there is no such folder"
