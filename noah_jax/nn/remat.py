"""Rematerialisation: the backward pass recomputes a layer's inside instead of storing it."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from noah_jax.nn.modules import split_module

Layer = Callable[..., jax.Array]


def run_layer(layer: Layer, *args: Any, remat: bool, **static: Any) -> jax.Array:
    """Computes `layer(*args, **static)`, rematerialised or not, with the same numbers.

    Args:
      layer: A module that has parameters and BatchNorm statistics, and no other state.
      *args: Arrays, random keys or `None`.
      remat: Whether only the arguments are stored for the backward pass, which then costs one
        more forward pass of the layer.
      **static: Arguments that are no arrays, such as `train`.
    """
    if not remat:
        return layer(*args, **static)
    # jax.checkpoint needs a pure function, so the weights become arguments.
    graphdef, params, stats = split_module(layer)

    @jax.checkpoint
    def call(params: nnx.State, stats: nnx.State, *args: Any) -> tuple[jax.Array, nnx.State]:
        module = nnx.merge(graphdef, params, stats)
        out = module(*args, **static)
        return out, nnx.state(module, nnx.BatchStat)

    out, stats = call(params, stats, *args)
    nnx.update(layer, stats)
    return out
