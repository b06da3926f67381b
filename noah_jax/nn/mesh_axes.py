"""Lets the same code run under mesh axes of every type: Auto, Explicit and Manual.

The heads and models are written for Auto axes, where XLA decides how intermediate arrays are
sharded. Under Explicit axes every operation would have to say it, and inside a `jax.shard_map`
that checks its types (`check_vma`) every operation must say over which axes its operands differ.
`on_auto_axes` is the one boundary where both are settled.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding


def _of_images(images: jax.P) -> Any:
    return images


def on_auto_axes(
    compute: Callable[..., Any],
    images: jax.Array,
    *others: Any,
    out_specs: Callable[[jax.P], Any] = _of_images,
) -> Any:
    """Computes `compute(images, *others)` with Auto axes in the place of Explicit ones.

    Outside, everything is as on an Explicit mesh: the results have the shardings of `out_specs`,
    and gradients have those of the arrays they belong to. Explicit axes over which no argument is
    sharded stay as they are. Without Explicit axes nothing happens.

    Inside `jax.shard_map`, every argument is marked as different on each device over whose axes
    any of them differs. So the gradients of weights that all devices share are summed here.

    Args:
      compute: The function.
      images: An array with the images on the first axis.
      *others: Weights, random keys, `None`: trees of arrays.
      out_specs: Called with the `PartitionSpec` of the images' first axis; returns those of the
        results, one for all or a tree. By default all results have the images first.
    """
    arguments = images, *others
    arguments = vary_over(varying_axes(arguments), arguments)
    types = [jax.typeof(x) for x in jax.tree.leaves(arguments)]
    # The mesh is `jax.set_mesh`'s, or without it the arrays' own.
    mesh = next((t.sharding.mesh for t in types if t.sharding.mesh.explicit_axes), None)
    if mesh is None:
        return compute(*arguments)
    used = {axis for t in types for axis in _axes_of(t.sharding.spec)}
    axes = tuple(axis for axis in mesh.explicit_axes if axis in used)
    if not axes:
        return compute(*arguments)
    specs = out_specs(jax.P(jax.typeof(images).sharding.spec[0]))
    out_sharding = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    return jax.sharding.auto_axes(compute, axes=axes, out_sharding=out_sharding)(*arguments)


def spec_of(x: jax.Array) -> jax.P:
    """Returns how the type of an array says that it is sharded over Explicit axes."""
    return jax.typeof(x).sharding.spec


def varying_axes(tree: Any) -> frozenset[str]:
    """Returns the Manual axes over which any array of a tree differs.

    There are none outside of a `jax.shard_map`, and in one without `check_vma`.
    """
    return frozenset().union(*map(_varying, jax.tree.leaves(tree)))


def vary_over(axes: frozenset[str], tree: Any) -> Any:
    """Marks every array of a tree as different over these Manual axes."""

    def mark(x: Any) -> Any:
        missing = tuple(axes - _varying(x))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(mark, tree)


def _varying(x: Any) -> frozenset[str]:
    return jax.typeof(x).manual_axis_type.varying


def _axes_of(spec: jax.P) -> list[str]:
    """Lists the names of axes in a `PartitionSpec`."""
    parts = [part if isinstance(part, tuple) else (part,) for part in spec]
    return [axis for part in parts for axis in part if axis is not None]
