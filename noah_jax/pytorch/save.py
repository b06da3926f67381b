"""Writes a model as a PyTorch state dict with the original's names."""

import pathlib
from collections.abc import Callable, Mapping

import numpy as np
from safetensors.numpy import save_file

from noah_jax.errors import InputError, MissingPackageError
from noah_jax.models.base import Model, Tree
from noah_jax.pytorch.mapping import to_torch
from noah_jax.pytorch.other_heads import options_for_metadata, table_of

# BatchNorm's counter of batches. Nothing here needs it, but the original's strict loading does.
COUNTER = "num_batches_tracked"

Writer = Callable[[dict[str, np.ndarray], pathlib.Path, Model], None]


def make_state_dict(
    model: Model,
    params: Tree,
    stats: Tree,
    *,
    counters: int | Mapping[str, int] = 0,
) -> dict[str, np.ndarray]:
    """Converts a model's weights to a state dict that the original loads strictly.

    Args:
      model: The model.
      params: The model's parameters.
      stats: The model's BatchNorm statistics; `{}` for a model without BatchNorm.
      counters: BatchNorm's counters of batches, as `batch_counters` gives them.

    Returns:
      Contiguous arrays by the original's keys, the counters included.
    """
    state_dict = to_torch({"params": params, "stats": stats}, table_of(model))
    mean = "running_mean"
    keys = [key.removesuffix(mean) + COUNTER for key in state_dict if key.endswith(f".{mean}")]
    by_key = counters if isinstance(counters, Mapping) else dict.fromkeys(keys, counters)
    return state_dict | {key: np.asarray(by_key.get(key, 0), np.int64) for key in keys}


def batch_counters(state_dict: Mapping[str, np.ndarray]) -> int | dict[str, int]:
    """Returns BatchNorm's counters in a state dict: one number if all are equal."""
    counters = {key: int(value) for key, value in state_dict.items() if key.endswith(f".{COUNTER}")}
    distinct = set(counters.values())
    return counters if len(distinct) > 1 else max(distinct, default=0)


def state_dict_writer(destination: str) -> Writer:
    """Returns the function that writes a state dict in the format of a file's name.

    It is a function of its own so that a wrong name is found before the weights are loaded.

    Args:
      destination: Name of the file, `.safetensors` or, with PyTorch installed, `.pth`.

    Returns:
      `write(state_dict, path, model)`, which writes to a local path of any name. Only a
      safetensors file says the model's name, and what the weights do not tell of its head.

    Raises:
      InputError: If the name ends in neither.
      MissingPackageError: If the name ends in `.pth` and PyTorch is not installed.
    """
    suffix = pathlib.PurePath(destination).suffix
    if suffix == ".safetensors":

        def write_safetensors(
            state_dict: dict[str, np.ndarray], path: pathlib.Path, model: Model
        ) -> None:
            metadata = {"format": "pt", "model": model.name} | options_for_metadata(model)
            save_file(state_dict, path, metadata=metadata)

        return write_safetensors
    if suffix != ".pth":
        raise InputError(f"{destination} must end in .safetensors or .pth")
    try:
        import torch  # an optional dependency that only this format needs
    except ImportError:
        raise MissingPackageError(
            f"writing {destination} needs PyTorch, which is not installed: pip install torch, or"
            " write .safetensors, which PyTorch reads with safetensors.torch.load_file"
        ) from None

    def write(state_dict: dict[str, np.ndarray], path: pathlib.Path, model: Model) -> None:
        # PyTorch wants arrays that it may write to, so these are copies.
        torch.save({key: torch.tensor(value) for key, value in state_dict.items()}, path)

    return write
