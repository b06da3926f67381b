"""An architecture's dimensions, from the keys and shapes of its state dict."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from noah_jax.models import get_architecture, get_family
from noah_jax.models.family import Family
from noah_jax.models.shapes import Shapes

StateDict = Mapping[str, np.ndarray]

# Describing a model takes time for every block, and a file can tell of any number of them.
_DEEPEST, _WIDEST = 200, 2**14


def nearest(
    state_dict: StateDict, family: Family, hint: str | None = None
) -> tuple[str, dict[str, Any]]:
    """The architecture of a family that is most like a state dict.

    Args:
      state_dict: Arrays by the original's names.
      family: The family whose keys they are.
      hint: An architecture to prefer where none has the dimensions.

    Returns:
      Its name, and the state dict's dimensions where they are not the architecture's, as
      arguments of `create_model`.
    """
    shapes = Shapes(state_dict)
    published = {
        name: architecture.dimensions
        for name, architecture in family.architectures.items()
        if family.is_kind(shapes, architecture)
    }
    inferred = family.infer_dimensions(shapes)
    inferred = {key: value for key, value in inferred.items() if _plausible(key, value)}
    name = min(published, key=lambda name: _distance(inferred, published[name]))
    if hint in published and _differing(inferred, published[name]):
        name = hint
    return name, _differing(inferred, published[name])


def attention_heads(name: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The usual attention heads of an architecture with other dimensions, which no shape tells.

    Returns:
      The argument of `create_model`; `{}` where the published number stays.
    """
    heads = get_family(name).likely_num_heads(get_architecture(name).dimensions, sizes)
    return {} if heads is None else {"num_heads": heads}


def _plausible(key: str, value: Any) -> bool:
    """Whether a model can be made so: a broken file lacks tensors or tells absurd shapes."""
    most = _DEEPEST if key.startswith("depth") else _WIDEST
    return all(0 < x <= most for x in np.ravel(value))


def _differing(inferred: Mapping[str, Any], published: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in inferred.items() if published[key] != value}


def _distance(inferred: Mapping[str, Any], published: Mapping[str, Any]) -> float:
    """0 where all is equal, else how many times as large or as small the dimensions are."""
    return sum(
        float(np.abs(np.log(np.divide(value, published[key]))).sum())
        for key, value in inferred.items()
    )
