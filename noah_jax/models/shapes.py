"""Reads an architecture's dimensions off the shapes of a PyTorch state dict."""

import collections
import math
from collections.abc import Callable, Mapping

import numpy as np

from noah_jax.nn.ratio import ratio

# DeiT's authors gave most attention heads this many channels.
_HEAD_WIDTH = 64


class Shapes:
    """The shapes of a state dict, by the original's names.

    A file may be broken, so nothing here raises: what a file lacks has length 0.

    Args:
      state_dict: Arrays by key, or anything that has a shape.
    """

    def __init__(self, state_dict: Mapping[str, np.ndarray]):
        self._state_dict = state_dict

    def __contains__(self, key: str | None) -> bool:
        return key in self._state_dict

    def rank(self, key: str) -> int:
        """Returns how many axes a tensor has; 0 if there is none."""
        return np.ndim(self._state_dict.get(key, 0))

    def length(self, key: str, axis: int = 0) -> int:
        """Length of a tensor along an axis; 0 if there is none."""
        shape = np.shape(self._state_dict.get(key, np.empty(0)))
        return shape[axis] if -len(shape) <= axis < len(shape) else 0

    def channels(self, *layers: str) -> int:
        """Output channels of layers that have equally many. A broken tensor is outvoted."""
        keys = [f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")]
        votes = collections.Counter(length for key in keys if (length := self.length(key)))
        return max(votes, key=votes.__getitem__, default=0)

    def depth(self, prefix: str) -> int:
        """How many blocks there are whose keys begin with `prefix` and a name of their own."""
        inside = [key.removeprefix(prefix) for key in self._state_dict if key.startswith(prefix)]
        return len({key.split(".")[0] for key in inside})

    def ratio(self, layer: str, width: int) -> float:
        """Output channels of a layer over `width`."""
        return ratio(width, self.channels(layer)) if width else 0


def class_token_argument(shapes: Shapes) -> dict[str, bool]:
    """Returns `{"class_token": True}` for a class token beside a head that does not read it.

    Without a head, the argument says whether there is a class token.
    """
    if not shapes.depth("head."):
        return {"class_token": "cls_token" in shapes}
    beside = "cls_token" in shapes and "head.weight" not in shapes
    return {"class_token": True} if beside else {}


def likely_heads(width: int, preferred: int) -> int:
    """Returns how many attention heads a layer of `width` channels has, which no shape tells.

    `preferred` if it divides the channels, else the divisor whose heads are nearest to 64
    channels wide.
    """
    if not width % preferred:
        return preferred
    divisors = [n for n in range(1, width + 1) if not width % n]
    return min(divisors, key=lambda n: abs(width / n - _HEAD_WIDTH))


def likely_width_mult(
    channels_of: Callable[[float], list[int]], actual: list[int], *, widest: int
) -> float:
    """Returns the roundest factor of all channels that gives such channels.

    Many factors do, because channels are rounded to multiples of 8. Published factors are the
    roundest.

    Args:
      channels_of: The channels that a factor gives.
      actual: The channels in the file.
      widest: Index of the channels that say most about the factor.
    """
    one = channels_of(1.0)[widest]
    low, high = (actual[widest] - 8) / one, (actual[widest] + 8) / one
    for scale in (1, 2, 4, 10, 20, 100, 1000, 10000):
        for k in range(max(1, math.ceil(low * scale)), math.floor(high * scale) + 1):
            if channels_of(k / scale) == actual:
                return k / scale
    return actual[widest] / one
