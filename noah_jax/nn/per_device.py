"""Code that runs on each device's part of a batch, inside a step for all of them."""

from collections.abc import Callable
from typing import Any

import jax


def on_each_device(run: Callable, specs: Callable, *arguments: Any) -> jax.Array:
    """`run`, whose result has the images in front, on each device's part of the batch.

    Args:
      run: called as `run(*arguments)`.
      specs: gives the arguments' `PartitionSpec`s for the mesh's axes, along which images lie.
      arguments: of all devices.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.auto_axes:  # one device, or inside a shard_map
        return run(*arguments)
    axes = mesh.axis_names
    return jax.shard_map(run, in_specs=specs(axes), out_specs=jax.P(axes), check_vma=False)(
        *arguments
    )
