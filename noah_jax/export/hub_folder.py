"""Writes a trained model as the folder that users of timm and of Hugging Face expect.

    model.safetensors   the weights by PyTorch's names: timm's where timm has the model
    config.json         timm's description, and sections of this package and of modeling_noah.py
    modeling_noah.py    the model in PyTorch, for linear and NOAH heads
    README.md           the model card

`noah_jax.load_model` reads it back bit for bit, with preprocessing and class names.
"""

import importlib.resources
import json
import math
import pathlib
import re
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from safetensors.numpy import save

from noah_jax import console
from noah_jax.console import say, working
from noah_jax.data.interpolation import SQUASH
from noah_jax.data.preprocessing import Preprocessing
from noah_jax.export.hub_card import hub_card
from noah_jax.export.loading import load_to_export
from noah_jax.files import whole
from noah_jax.hub.hugging_face import CONFIG, WEIGHTS
from noah_jax.hub.upload import check_upload, upload_folder
from noah_jax.inference.description import imagenet_classes
from noah_jax.inference.trained import TrainedModel
from noah_jax.models.base import Model
from noah_jax.pytorch.model_config import OWN_SECTION
from noah_jax.pytorch.other_heads import options_for_metadata
from noah_jax.pytorch.reference import HEADS_IN_PYTORCH, modeling_settings
from noah_jax.pytorch.save import COUNTER, make_state_dict
from noah_jax.pytorch.timm_layout import TimmLayout, layer_names, timm_layout
from noah_jax.runs.destination import free_destination

CARD, MODELING = "README.md", "modeling_noah.py"
_SECTION = "modeling_noah"  # of config.json, what modeling_noah.py has to know
# timm's names of interpolations that have other names here; it has no other "nearest".
_INTERPOLATIONS = {"nearest-exact": "nearest"}
# A dataset or file on this machine, with or without a kind in front, such as csv:/home/me/birds.
_LOCAL_PATH = re.compile(r"(?P<kind>\w+:)?(?P<path>(?!//)[/~.].*)", re.DOTALL)
_LOCAL_KINDS = ("folder:", "csv:", "coco:", "voc:", "wds:")


def export_hub(
    source: str,
    destination: str | None,
    *,
    ema: bool = False,
    settings: Mapping[str, Any] | None = None,
    licence: str | None = None,
    push: str | None = None,
    private: bool = False,
) -> None:
    """Exports a trained model into a new folder for the hub, uploads it, and says what is there.

    Args:
      source: Path of the model, see `noah_jax.inference.trained.load_one`.
      destination: A folder, local or `gs://`, that does not exist or is empty. It appears whole or
        not at all. `None` keeps none.
      ema: Use the exponential moving average of the weights.
      settings: Preprocessing that replaces what is stored with the weights, see
        `noah_jax.data.preprocessing.check_setting`.
      licence: The identifier of a licence for the card, such as "apache-2.0"; by default that of
        published weights, where it is known.
      push: The repository to upload to, `USER/NAME`; `None` uploads nothing.
      private: Whether a repository that is made for it is private.

    Raises:
      WriteError: If the folder cannot be written.
      InputError: If the folder is taken, or the upload fails.
      MissingPackageError: If the upload needs huggingface_hub, which is not installed.
      FileNotFoundError, CheckpointError: See `load_one`.
    """
    repository = None if push is None else check_upload(push)
    target = None if destination is None else free_destination(destination, folder=True)
    trained = load_to_export(source, ema=ema, settings=settings)
    files = hub_files(trained, licence=licence, repository=repository)
    if target is not None:
        with working(f"writing {target}"), whole(target, last=CONFIG) as folder:
            _write(folder, files)
        layout = timm_layout(trained.model)
        names = f"timm's names ({layout.architecture})" if layout else "the original's names"
        say(f"{destination}: {trained.model.name}, {', '.join(files)}; weights by {names}")
    if repository is not None:
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name) / "folder"
            _write(folder, files)
            message = f"{trained.model.name}, exported from noah_jax"
            url = upload_folder(folder, repository, message=message, private=private)
        say(f"{url}: noah_jax.load_model('hf://{repository}')")


def _write(folder: pathlib.Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)


def hub_files(
    trained: TrainedModel, *, licence: str | None = None, repository: str | None = None
) -> dict[str, bytes]:
    """Returns the files of a folder for the hub by their names.

    Args:
      trained: The model, with a head.
      licence: See `export_hub`.
      repository: The name of the repository that the card shows, if it has one.
    """
    model = trained.model
    layout = timm_layout(model)
    state_dict = make_state_dict(
        model,
        trained.params,
        trained.stats,
        counters=(trained.metadata.get("source") or {}).get(COUNTER, 0),
    )
    keys = {key: layout.key(key) if layout else key for key in state_dict}
    config = hub_config(trained, layout)
    if model.arguments["head"] in HEADS_IN_PYTORCH:
        renamed = {new: old for old, new in keys.items() if new != old}
        config[_SECTION] = {**modeling_settings(model), "renamed": renamed}
    else:
        console.note(
            f"modeling_noah.py knows the heads {' and '.join(HEADS_IN_PYTORCH)}, and {model.name}"
            f" has a {model.arguments['head']} head: the folder is for noah_jax alone"
        )
    header = {"format": "pt", "model": model.name} | options_for_metadata(model)
    weights = save({keys[key]: array for key, array in state_dict.items()}, metadata=header)
    files = {WEIGHTS[0]: weights, CONFIG: (json.dumps(config, indent=2) + "\n").encode()}
    if _SECTION in config:
        source = importlib.resources.files("noah_jax.pytorch").joinpath(MODELING)
        files[MODELING] = source.read_bytes()
    card = hub_card(
        trained,
        layout,
        modeling=_SECTION in config,
        training=without_local_paths(trained.config),
        licence=licence,
        repository=repository,
    )
    return files | {CARD: card.encode()}


def hub_config(trained: TrainedModel, layout: TimmLayout | None) -> dict[str, Any]:
    """Returns the contents of `config.json`, as timm writes it, with this package's section.

    Args:
      trained: The model.
      layout: How timm makes the model, if it can.
    """
    model, names = trained.model, trained.class_names
    config: dict[str, Any] = {
        "architecture": layout.architecture if layout else model.name,
        "num_classes": model.num_classes,
        "num_features": _num_features(model),
    }
    if layout is not None:
        config["global_pool"] = layout.global_pool
        if layout.model_args:
            config["model_args"] = dict(layout.model_args)
    config["pretrained_cfg"] = {
        "custom_load": False,
        "num_classes": model.num_classes,
        "input_size": [3, *trained.preprocessing.size],
        "fixed_input_size": layout is not None and bool(model.position_grids),
        **_timm_preprocessing(trained.preprocessing),
        **layer_names(model, layout),
    }
    if names is not None:
        config["label_names"] = list(names)
        readable = trained.display_names()
        if readable != list(names):
            config["label_descriptions"] = dict(zip(names, readable, strict=True))
    usual = names is None or names == tuple(imagenet_classes())
    training = _training(trained)
    config[OWN_SECTION] = {
        "name": model.name,
        "arguments": model.arguments,
        "preprocessing": trained.preprocessing.to_json(),
        **({} if usual else {"class_names": list(names or ())}),
        **({"training": training} if training else {}),
        "source": {
            **without_local_paths(trained.metadata.get("source") or {}),
            "step": trained.step,
            "ema": trained.ema,
        },
    }
    return config


def _training(trained: TrainedModel) -> dict[str, Any]:
    """Returns what evaluation needs of the training's configuration, without local paths."""
    training = trained.evaluation_config()
    if _is_local(training.get("dataset")):
        del training["dataset"]
    if training and _is_local(training["data"]["dir"]):
        training["data"]["dir"] = None
    return training


def _num_features(model: Model) -> int:
    """Returns the number of channels that the head sees."""
    images = jax.ShapeDtypeStruct((1, *model.image_size, 3), jnp.float32)
    return jax.eval_shape(model.features, *model.abstract(), images).shape[-1]


def _timm_preprocessing(preprocessing: Preprocessing) -> dict[str, Any]:
    """Returns how images are prepared, as timm's `pretrained_cfg` says it."""
    interpolation, side = preprocessing.interpolation, min(preprocessing.size)
    # "cover" is timm's crop of everything, of images that are resized to just cover it.
    crop_pct = side / preprocessing.resize if isinstance(preprocessing.resize, int) else 1.0
    while isinstance(preprocessing.resize, int) and int(side / crop_pct) < preprocessing.resize:
        crop_pct = math.nextafter(crop_pct, 0.0)  # timm rounds the quotient down
    return {
        "interpolation": _INTERPOLATIONS.get(interpolation, interpolation),
        "crop_pct": crop_pct,
        "crop_mode": "squash" if preprocessing.resize == SQUASH else "center",
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }


def without_local_paths(value: Any) -> Any:
    """Returns JSON's values with paths of this machine cut to their last name.

    >>> without_local_paths({"dataset": "csv:/home/me/birds", "seed": 1})
    {'dataset': 'csv:birds', 'seed': 1}
    """
    if isinstance(value, Mapping):
        return {key: without_local_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_local_paths(item) for item in value]
    match = _LOCAL_PATH.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    return (match["kind"] or "") + pathlib.PurePath(match["path"]).name


def _is_local(dataset: Any) -> bool:
    """Says whether a dataset's name stands for files of this machine."""
    name = str(dataset)
    local = name.startswith(_LOCAL_KINDS) and "://" not in name
    return local or _LOCAL_PATH.fullmatch(name) is not None
