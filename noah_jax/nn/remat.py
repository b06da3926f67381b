"""Rematerialisation: the backward pass computes a layer's inside again instead of keeping it."""

from typing import Any

import jax
from flax import nnx


def run_layer(layer: nnx.Module, *args: Any, remat: bool, **static: Any) -> jax.Array:
    """`layer(*args, **static)`, rematerialised or not: the same numbers.

    Args:
      layer: has parameters and BatchNorm statistics, no other state.
      *args: arrays, random keys or `None`.
      remat: whether only the arguments are kept for the backward pass, which then costs one
        more forward pass of the layer.
      **static: what is no array, such as `train`.
    """
    if not remat:
        return layer(*args, **static)
    # jax.checkpoint wants a pure function, so the weights go in as arguments.
    graphdef, params, stats = nnx.split(layer, nnx.Param, nnx.BatchStat)

    @jax.checkpoint
    def call(params, stats, *args):
        module = nnx.merge(graphdef, params, stats)
        out = module(*args, **static)
        return out, nnx.state(module, nnx.BatchStat)

    out, stats = call(params, stats, *args)
    nnx.update(layer, stats)
    return out
