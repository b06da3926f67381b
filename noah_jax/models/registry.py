"""What the registry knows of an architecture."""

import dataclasses
import functools
import math
from typing import Any

from flax import nnx

from noah_jax.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One backbone, with the facts it was published with.

    Attributes:
      build: the module's class with the architecture's own arguments bound, `dimensions`
        among them, called as
        `build(head_spec, image_size=..., batch_norm_group=..., dtype=...,
        rngs=...)` plus the family's own arguments; returns a module with `features`,
        `head` and `__call__`.
      family: name of the family, which is also the file's and the conversion table's.
      head_num: NOAH's published N on this backbone.
      key_ratio: NOAH's published r.
      num_classes: classes of the published weights.
      image_size: `(height, width)` in pixels of the published recipe.
      mean: per-channel mean the input is normalised by, of pixels in 0..1.
      std: per-channel standard deviation likewise.
      crop_pct: side of the centre crop over that of the resized image, in the evaluation of
        the published numbers.
      interpolation: of that resizing, "bilinear" or "bicubic".
      decay_all: whether the recipe's weight decay takes every parameter; where not, it spares
        biases, parameters that have one dimension in PyTorch, and `no_decay`.
      no_decay: paths of further parameters that the recipe's weight decay spares.
      spatial_major: see `NOAH`; of convolutional networks.
    """

    build: functools.partial[nnx.Module]
    family: str
    head_num: int
    key_ratio: float
    num_classes: int = 1000
    image_size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop_pct: float = 0.875
    interpolation: str = "bilinear"
    decay_all: bool = False
    no_decay: tuple[str, ...] = ()
    spatial_major: bool = False

    @property
    def dimensions(self) -> dict[str, Any]:
        """The published sizes, by the argument of `create_model` that changes each.

        A number or a tuple of numbers; where it is a float, a ratio.
        """
        return {key: value for key, value in self.build.keywords.items() if _numbers(value)}


def check_dimension(key: str, value: Any, published: Any) -> Any:
    """A size as an architecture takes it, a list as a tuple.

    Raises:
      ValueError: if it is not of the kind that `published` is.
    """
    many = isinstance(published, tuple)
    value = tuple(value) if many and isinstance(value, list) else value
    kinds = {type(number) for number in _numbers(published)}
    allowed = int if kinds == {int} else int | float
    found = _numbers(value)
    if (
        isinstance(value, tuple) != many
        or len(found) != len(_numbers(published))
        or not all(isinstance(x, allowed) and 0 < x < math.inf for x in found)
    ):
        what = "integer" if allowed is int else "number"
        what = f"{len(published)} positive {what}s" if many else f"a positive {what}"
        raise InputError(f"{key} must be {what}, such as {published}, got {value!r}")
    return value


def _numbers(value: Any) -> tuple[int | float, ...]:
    """The number or the numbers of a tuple; none where it is anything else."""
    values = value if isinstance(value, tuple) else (value,)
    plain = all(isinstance(x, int | float) and not isinstance(x, bool) for x in values)
    return values if plain else ()
