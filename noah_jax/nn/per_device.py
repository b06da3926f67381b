"""`shard_map` over the batch axis, for code that the compiler cannot partition."""

import math
from collections.abc import Callable
from typing import Any

import jax


def shards_of_batch() -> int:
    """Counts the devices that the batch is taken to be split over: those along all Auto axes."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[axis] for axis in mesh.auto_axes)


def on_each_device(
    run: Callable[..., jax.Array], specs: Callable[[tuple[str, ...]], Any], *arguments: Any
) -> jax.Array:
    """Runs a function on each device's shard of the batch, inside a step for all devices.

    Args:
      run: Called as `run(*arguments)` with a device's shards. Its result has the images on the
        first axis.
      specs: Called with the names of the mesh's Auto axes, over which the images are sharded;
        returns a tuple of `PartitionSpec`s, one for each argument. Over Explicit axes nothing is
        sharded, because `noah_jax.nn.mesh_axes.on_auto_axes` has turned those that are used.
      *arguments: The arguments of all devices together.

    Returns:
      The results of all devices, one after another on the first axis.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not (mesh.auto_axes or mesh.explicit_axes):  # one device, or already inside a shard_map
        return run(*arguments)
    axes = mesh.auto_axes
    return jax.shard_map(run, in_specs=specs(axes), out_specs=jax.P(axes), check_vma=False)(
        *arguments
    )
