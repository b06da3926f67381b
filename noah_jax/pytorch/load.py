"""Loads a model with its weights straight from a PyTorch file."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from noah_jax.errors import ConversionError, InputError, ReadError
from noah_jax.models import create_model, get_family
from noah_jax.models.base import Model, Tree
from noah_jax.models.finite import check_finite
from noah_jax.pytorch.files.layouts import Weights, load_weights
from noah_jax.pytorch.infer import ModelMatch, find_model, name_in_metadata
from noah_jax.pytorch.mapping import to_jax
from noah_jax.pytorch.model_config import ModelConfig, read_model_config
from noah_jax.pytorch.other_heads import options_in_metadata, table_of
from noah_jax.pytorch.renames import rename


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model with the weights of a file.

    Attributes:
      model: The model.
      params: The parameters, as float32 NumPy arrays. Those that are float32 in the file are views
        into the mapped file.
      stats: BatchNorm's statistics, likewise; `{}` for a model without BatchNorm.
      weights: The state dict as it is in the file, and what the file says about it.
      config: What the `config.json` beside the file says about it.
      notes: Sentences on what the file does not tell.
    """

    model: Model
    params: Tree
    stats: Tree
    weights: Weights
    config: ModelConfig
    notes: tuple[str, ...]


def load_torch(
    path: str | os.PathLike,
    *,
    name: str | None = None,
    hint: str | None = None,
    ema: bool = False,
    arguments: Mapping[str, Any] | None = None,
    prefix: str | None = None,
    backbone: bool = False,
) -> LoadedModel:
    """Reads a training checkpoint, a state dict or a safetensors file and finds its model.

    Nothing that the file names is imported or called.

    Args:
      path: A local file.
      name: Registered name of the model; `None` finds it.
      hint: What the model is called, to choose between names of the same weights; `None` takes
        what the file, or a `config.json` beside it, calls it. The shapes decide everything else.
      ema: Load the exponential moving average of the weights, not the weights themselves.
      arguments: Arguments of `create_model` that override what the shapes tell.
      prefix: What the keys of the model begin with, if there are several models in the file.
      backbone: Whether to take the backbone alone; all other keys are left out.

    Raises:
      ReadError: If the file cannot be read or has no such weights, or they are not finite.
      ConversionError: If the weights do not fit `name`, or no model; the message counts the
        missing, extra and misshapen keys, and names the model that fits. Also if `config.json`
        names an architecture that this package does not have, and `name` is not given.
      InputError: If `name` is not registered, or an argument does not exist or fit.
    """
    weights = load_weights(path, ema=ema)
    config = read_model_config(path, weights.metadata)
    if config.own and name is None and not arguments and not backbone and prefix is None:
        match = _own_model(weights, config.own)
    else:
        if name is None:
            hint = hint or config.name() or name_in_metadata(weights.metadata)
            arguments = {**config.arguments(), **(arguments or {})}
        arguments = {**options_in_metadata(weights.metadata), **(arguments or {})}
        match = find_model(
            _under(weights.state_dict, prefix, path),
            name=name,
            hint=hint,
            arguments=arguments,
            beside=weights.beside,
            backbone=backbone,
        )
    params, stats = match.model.abstract()
    table = table_of(match.model)
    check_finite(match.state_dict, os.fspath(path))
    try:
        tree = to_jax(match.state_dict, table, {"params": params, "stats": stats})
    except ConversionError as error:
        fitting = _fitting_name(weights, hint) if name is not None else None
        if fitting is None:
            raise
        raise ConversionError(f"{error}; {fitting} fits: --model {fitting}, or none") from error
    # A float64 value may be too large for float32.
    check_finite(flatten_dict(tree, sep="/"), os.fspath(path))
    wrapped = (f"{weights.prefix} in front of all keys is left out",) if weights.prefix else ()
    notes = (*wrapped, *match.notes)
    return LoadedModel(match.model, tree["params"], tree.get("stats", {}), weights, config, notes)


def _under(
    state_dict: Mapping[str, np.ndarray], prefix: str | None, path: str | os.PathLike
) -> Mapping[str, np.ndarray]:
    """Takes the keys that begin with a prefix, without it; all keys if it is `None`."""
    if prefix is None:
        return state_dict
    prefix = prefix.rstrip(".") + "."
    inside = {k.removeprefix(prefix): x for k, x in state_dict.items() if k.startswith(prefix)}
    if not inside:
        first = sorted({key.partition(".")[0] for key in state_dict})
        raise ReadError(f"{path}: no key begins with {prefix}; they begin with {', '.join(first)}")
    return inside


def _own_model(weights: Weights, own: Mapping[str, Any]) -> ModelMatch:
    """Creates the model that this package's own section of `config.json` describes."""
    model = create_model(own["name"], **own["arguments"])
    return ModelMatch(model, rename(weights.state_dict, get_family(model.name)), ())


def _fitting_name(weights: Weights, hint: str | None) -> str | None:
    """Returns the name of the model that fits the weights, if there is one."""
    try:
        return find_model(weights.state_dict, hint=hint).model.name
    except InputError:
        return None
