"""Starts a training state with weights that were loaded from elsewhere."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from noah_jax.errors import InputError
from noah_jax.inference.initial_weights import InitialWeights
from noah_jax.train.state import State


def check_initial_weights(section: Mapping[str, Any]) -> None:
    """Raises an InputError if the moving average is asked for, but no weights are named.

    Args:
      section: See `noah_jax.config_sections.initial_weights_section`.
    """
    if section["init_ema"] and section["init_from"] is None:
        raise InputError("init_ema=True needs init_from, whose moving average it takes")


def take_over(state: State, initial: InitialWeights) -> State:
    """Replaces the weights of a fresh state, on the same devices; the average starts at them."""
    weights = {"params": initial.params, "stats": initial.stats}
    new = {key: _replace(state[key], arrays) for key, arrays in weights.items()}
    if "ema" in state:
        new["ema"] = {key: _replace(state["ema"][key], weights[key]) for key in state["ema"]}
    return state | new


def _replace(tree: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Replaces the arrays of a tree that are given by path; each process makes its own shards."""
    placed = {
        key: jax.make_array_from_callback(leaf.shape, leaf.sharding, arrays[key].__getitem__)
        if key in arrays
        else leaf
        for key, leaf in flatten_dict(tree, sep="/").items()
    }
    return unflatten_dict(placed, sep="/")
