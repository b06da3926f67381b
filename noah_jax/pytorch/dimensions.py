"""Finds the architecture of a family whose dimensions are nearest to those of a state dict."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from noah_jax.models import get_architecture, get_family
from noah_jax.models.family import Family
from noah_jax.models.shapes import Shapes

# Describing a model takes time for every block, and a broken file can state any number of them.
_MAX_DEPTH, _MAX_WIDTH = 200, 2**14


def nearest(
    state_dict: Mapping[str, np.ndarray], family: Family, hint: str | None = None
) -> tuple[str, dict[str, Any]]:
    """Finds the architecture of a family that is most like a state dict.

    Args:
      state_dict: Arrays by the original's keys.
      family: The family that the keys belong to.
      hint: An architecture to prefer if no architecture has the dimensions.

    Returns:
      The name of the architecture, and the state dict's dimensions that differ from it, as
      arguments of `create_model`.
    """
    shapes = Shapes(state_dict)
    published = {
        name: architecture.dimensions
        for name, architecture in family.architectures.items()
        if family.is_kind(shapes, architecture)
    }
    inferred = family.infer_dimensions(shapes)
    inferred = {key: value for key, value in inferred.items() if _is_plausible(key, value)}
    name = min(published, key=lambda name: _distance(inferred, published[name]))
    if hint in published and _differing(inferred, published[name]):
        name = hint
    return name, _differing(inferred, published[name])


def attention_heads(name: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the usual attention heads of an architecture with other sizes.

    No shape tells the number of attention heads.

    Returns:
      The argument of `create_model`; `{}` if the published number stays.
    """
    heads = get_family(name).likely_num_heads(get_architecture(name).dimensions, sizes)
    return {} if heads is None else {"num_heads": heads}


def _is_plausible(key: str, value: Any) -> bool:
    """Says whether a model can have a dimension; broken files lack tensors or state absurd ones."""
    limit = _MAX_DEPTH if key.startswith("depth") else _MAX_WIDTH
    return all(0 < x <= limit for x in np.ravel(value))


def _differing(inferred: Mapping[str, Any], published: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in inferred.items() if published[key] != value}


def _distance(inferred: Mapping[str, Any], published: Mapping[str, Any]) -> float:
    """Returns 0 for equal dimensions, and otherwise the sum of the logarithms of their ratios."""
    return sum(
        float(np.abs(np.log(np.divide(value, published[key]))).sum())
        for key, value in inferred.items()
    )
