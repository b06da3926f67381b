"""A model straight from a PyTorch file."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from noah_jax.models import get_family
from noah_jax.models.base import Model, Tree
from noah_jax.pytorch.files.layouts import Weights, load_weights
from noah_jax.pytorch.infer import find_model, told_name
from noah_jax.pytorch.mapping import to_jax


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model with the weights of a file.

    Attributes:
      model: the model.
      params: float32 NumPy arrays, of float32 files views into the mapped file.
      stats: likewise; `{}` for models without.
      weights: the state dict as it was in the file, and what the file says of it.
      notes: sentences on what the file does not tell.
    """

    model: Model
    params: Tree
    stats: Tree
    weights: Weights
    notes: tuple[str, ...]


def load_torch(
    path: str | os.PathLike,
    *,
    name: str | None = None,
    hint: str | None = None,
    ema: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> Loaded:
    """Reads a training checkpoint, a state dict or a safetensors file and finds its model.

    Nothing that the file names is imported or called.

    Args:
      path: a local file.
      name: the registered name of the model; `None` finds it.
      hint: what the model is called, to choose between names of the same weights; `None` takes
        what the file calls it. The shapes decide all else.
      ema: take the exponential moving average of the weights, not the weights themselves.
      arguments: of `create_model`; they override what the shapes tell.

    Raises:
      ReadError: if the file cannot be read or has no such weights.
      ConversionError: if no model fits; every missing, extra and misshapen key is named.
      ValueError: if `name` or an argument is none.
    """
    weights = load_weights(path, ema=ema)
    hint = hint or told_name(weights.metadata)
    found = find_model(weights.state_dict, name=name, hint=hint, arguments=arguments)
    params, stats = found.model.abstract()
    table = get_family(found.model.name).table
    tree = to_jax(found.state_dict, table, {"params": params, "stats": stats})
    return Loaded(found.model, tree["params"], tree.get("stats", {}), weights, found.notes)
