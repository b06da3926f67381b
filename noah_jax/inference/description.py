"""Finds what travels with a model's weights: its preprocessing and the names of its classes."""

import functools
import importlib.resources
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from noah_jax.data.interpolation import SQUASH
from noah_jax.data.preprocessing import (
    ARCHITECTURE,
    GIVEN,
    PRETRAINED,
    SETTINGS,
    TORCHVISION,
    Preprocessing,
    from_json,
    of_run,
)
from noah_jax.errors import InputError, ReadError, one_line
from noah_jax.models.base import Model
from noah_jax.runs.run_dir import MODEL_FILE

# timm's names of interpolations that have other names here. Its "random" is for training.
_TIMM_INTERPOLATIONS = {"nearest": "nearest-exact", "random": "bilinear"}


def describe_model(
    model: Model,
    *,
    metadata: Mapping[str, Any],
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    path: str,
    pretrained_cfg: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
    published: Mapping[str, Any] | None = None,
) -> Preprocessing:
    """Gives a model the preprocessing and the class names of its weights; returns the former.

    Args:
      model: The model that was loaded.
      metadata: The contents of `model.json`; empty for a PyTorch file.
      config: The configuration of the training; empty for converted weights.
      settings: What the user gives, see `noah_jax.data.preprocessing.check_setting`.
      path: What the user named, for messages.
      pretrained_cfg: timm's description of the weights, if there is one.
      class_names: The classes that timm's description names, if it does.
      published: The settings with which torchvision published the weights, if it did.

    Raises:
      InputError: If a setting does not fit.
      ReadError: If `model.json` holds something else.
    """
    if "preprocessing" in metadata:
        try:
            found = from_json(metadata["preprocessing"])
        except (InputError, TypeError, KeyError) as error:
            raise ReadError(f"{MODEL_FILE} of {path}: {error}") from error
    elif config:
        found = of_run(config["data"], image_size=model.image_size, mean=model.mean, std=model.std)
    else:
        found = _of_weights(model, pretrained_cfg or {}, path)
        found = found.override(published or {}, TORCHVISION)
    preprocessing = found.override(settings, GIVEN)
    if preprocessing.size != model.image_size:
        _check_input_size(model, preprocessing.size)
    model.preprocessing = preprocessing
    model.mean, model.std = preprocessing.mean, preprocessing.std
    names = metadata.get("class_names")
    if names is None and class_names is not None and len(class_names) == model.num_classes:
        names = class_names
    if names is None and model.num_classes == len(imagenet_classes()):
        names = imagenet_classes()
    model.class_names = None if names is None else tuple(names)
    return preprocessing


def published_preprocessing(model: Model) -> Preprocessing:
    """Returns the preprocessing that was published for a model's architecture."""
    architecture = model.architecture
    return Preprocessing(
        model.image_size,
        int(min(model.image_size) / architecture.crop_pct),
        architecture.interpolation,
        tuple(architecture.mean),
        tuple(architecture.std),
        dict.fromkeys(SETTINGS, ARCHITECTURE),
    )


@functools.cache
def imagenet_classes() -> dict[str, str]:
    """Returns the names of ImageNet-1k's classes by WordNet id, in the order of the labels."""
    path = importlib.resources.files("noah_jax.data") / "imagenet_classes.txt"
    pairs = (line.split(" ", 1) for line in path.read_text("utf-8").splitlines())
    return {wordnet_id: name for wordnet_id, name in pairs}


def _of_weights(model: Model, pretrained_cfg: Mapping[str, Any], path: str) -> Preprocessing:
    """Returns what timm says of weights, and what was published for the architecture besides."""
    settings: dict[str, Any] = {
        key: pretrained_cfg[key] for key in ("mean", "std") if key in pretrained_cfg
    }
    if pretrained_cfg.get("crop_mode") == SQUASH:
        settings["resize"] = SQUASH
    if interpolation := pretrained_cfg.get("interpolation"):
        settings["interpolation"] = _TIMM_INTERPOLATIONS.get(interpolation, interpolation)
    try:
        if "input_size" in pretrained_cfg:
            size = tuple(pretrained_cfg["input_size"][1:])
            # Where the caller gives another size of images, it is theirs.
            if model.image_size in (size, model.architecture.image_size):
                settings["crop"] = size
        if "crop_pct" in pretrained_cfg and "resize" not in settings:
            side = min(settings.get("crop", model.image_size))
            settings["resize"] = int(side / pretrained_cfg["crop_pct"])
        return published_preprocessing(model).override(settings, PRETRAINED)
    except (InputError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ReadError(f"timm's pretrained_cfg of {path} does not fit: {error}") from error


def _check_input_size(model: Model, size: tuple[int, int]) -> None:
    """Raises an InputError unless a model takes images of `(height, width)` pixels."""
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)
    try:
        jax.eval_shape(model.logits, *model.abstract(), images)
    except (ValueError, TypeError) as error:
        height, width = model.image_size
        raise InputError(
            f"{model.name} takes images of {height}x{width} pixels, so crop={size[0]}x{size[1]}"
            f" does not fit it: {one_line(error, 200)}"
        ) from error
