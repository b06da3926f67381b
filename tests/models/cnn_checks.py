"""What the tests of the convolutional families share."""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from noah_jax.convert.names import TABLES
from noah_jax.convert.table import flatten, to_jax, to_torch
from noah_jax.models import create_model, get_architecture


class MapProbe(nnx.Module):
    """A head of the user's own, without weights: means over what it is given."""

    def __call__(self, features, *, train, key=None):
        return features.astype(jnp.float32).mean(range(1, features.ndim - 1))


def parameter_count(name: str) -> int:
    """Parameters of a model as published."""
    params, _ = create_model(name).abstract()
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def map_shape(name: str, image_size: tuple[int, int], **arguments) -> tuple[int, ...]:
    """Shape of the map of two images."""
    model = create_model(name, image_size=image_size, **arguments)
    images = jax.ShapeDtypeStruct((2, *image_size, 3), jnp.float32)
    return jax.eval_shape(model.features, *model.abstract(), images).shape


def torch_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """The state dict, without the batch counters, that the model converts to and from."""
    params, stats = create_model(name).abstract()
    abstract = {"params": params, "stats": stats}
    table = TABLES[get_architecture(name).family]
    tree = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), abstract)
    state = to_torch(tree, table)
    back = flatten(to_jax(state, table, abstract))
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in flatten(tree).items()}
    return {key: value.shape for key, value in state.items()}


def products_in(name: str, dtype) -> set[str]:
    """Dtypes of what is multiplied by the convolutions and matrix products of a backbone."""
    model = create_model(name, dtype=dtype, image_size=32)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), dtype)
    jaxpr = jax.make_jaxpr(model.features)(*model.abstract(), images)
    return {
        str(variable.aval.dtype)
        for equation in _equations(jaxpr.jaxpr)
        if equation.primitive.name in ("conv_general_dilated", "dot_general")
        for variable in equation.invars
    }


def _equations(jaxpr) -> Iterator:
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for item in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(item, "jaxpr", item)
                if hasattr(inner, "eqns"):
                    yield from _equations(inner)
