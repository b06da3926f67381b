"""Finds how fast each layer learns with layer-wise learning-rate decay.

Layers far from the head, whose pretrained features are the most general, learn the slowest (BEiT,
Bao et al., 2021; MAE, He et al., 2022). A family of backbones says the order of its layers by
expressions, see `noah_jax.models.family.Family`. In a vision transformer the embeddings are layer 0
and the blocks follow; everything after them, such as the final norm and the head, is the last
layer, which learns at the full rate. (timm counts the final norm to the last block instead.)
"""

import re
from collections.abc import Iterable, Sequence

from noah_jax.errors import InputError
from noah_jax.models import FAMILIES


def number_layers(paths: Iterable[str], layers: Sequence[str]) -> dict[str, int]:
    """Numbers the layers of a model.

    Args:
      paths: The paths of all its parameters.
      layers: The expressions of its family, in the order in which images pass them.

    Returns:
      The number of each parameter's layer: 0 for the first one, the highest number for what
      matches no expression.
    """
    places = {path: _place(path, layers) for path in paths}
    inside = sorted({place for place in places.values() if place is not None})
    return {
        path: len(inside) if place is None else inside.index(place)
        for path, place in places.items()
    }


def _place(path: str, layers: Sequence[str]) -> tuple[int, ...] | None:
    """Returns what sorts the layers: the first expression that matches, and what it captured."""
    for i, pattern in enumerate(layers):
        if found := re.match(pattern, path):
            return i, *map(int, found.groups())
    return None


def layer_scales(decay: float, paths: Iterable[str], layers: Sequence[str]) -> dict[str, float]:
    """Computes the factor of each parameter's learning rate.

    Args:
      decay: The factor from one layer to the one before it.
      paths: The paths of all parameters.
      layers: See `number_layers`.

    Raises:
      InputError: If the order of the layers is not known.
    """
    if not layers:
        known = ", ".join(name for name, family in FAMILIES.items() if family.layers)
        raise InputError(
            "optim.layer_decay: nobody said in which order the layers of this model come; that is"
            f" known of {known}, and for other models optim.param_groups sets learning rates"
        )
    numbers = number_layers(paths, layers)
    last = max(numbers.values())
    return {path: decay ** (last - number) for path, number in numbers.items()}
