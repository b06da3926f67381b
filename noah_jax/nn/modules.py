"""Splits Flax modules into parameters and statistics, and turns these into nested dicts.

Everything that touches NNX's graphs and states is here and in `noah_jax.models.base`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from noah_jax.errors import InputError

Tree = dict[str, Any]


def split_module(module: Any) -> tuple[nnx.GraphDef[Any], nnx.State, nnx.State]:
    """A module's graph, parameters and BatchNorm statistics; it must have no other state."""
    graphdef, params, *rest = nnx.split(module, nnx.Param, nnx.BatchStat)
    (stats,) = rest
    return graphdef, params, stats


def state_to_tree(state: nnx.State) -> Tree:
    """Returns an NNX state as nested dicts with string keys."""
    tree: Tree = {}
    for path, leaf in nnx.to_flat_state(state):
        node = tree
        for part in path[:-1]:
            node = node.setdefault(str(part), {})
        node[str(path[-1])] = leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
    return tree


def tree_to_state(abstract: nnx.State, tree: Tree, what: str) -> nnx.State:
    """Nested dicts as an NNX state.

    Args:
      abstract: A state with the paths and the shapes that must come out.
      tree: Nested dicts of arrays.
      what: What the tree holds, for errors.

    Raises:
      InputError: If a leaf is missing, surplus or misshapen; names it.
    """
    flat = {
        "/".join(str(k.key) for k in path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    leaves = []
    for path, variable in nnx.to_flat_state(abstract):
        name = "/".join(map(str, path))
        if name not in flat:
            raise InputError(f"{what} lack {name!r}; they belong to another model")
        leaf = flat.pop(name)
        if jnp.shape(leaf) != variable.shape:
            raise InputError(
                f"{what} hold {name!r} of shape {jnp.shape(leaf)}, the model has {variable.shape}"
            )
        # A module would write into NumPy arrays in place.
        leaf = jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf
        leaves.append((path, variable.replace(leaf)))
    if flat:
        raise InputError(f"{what} hold {sorted(flat)}, which the model does not have")
    return nnx.from_flat_state(leaves)
