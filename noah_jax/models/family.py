"""The record of a family of backbones, and of each of its architectures."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from noah_jax.errors import InputError
from noah_jax.models.conversion import Rename, Row
from noah_jax.models.shapes import Shapes

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One backbone and the settings it was published with.

    Attributes:
      build: A `Backbone`'s class with the architecture's own arguments bound, `dimensions` among
        them. It is called as `build(head_spec, backbone_settings, rngs=...)` plus the family's
        own arguments.
      head_num: NOAH's published N on this backbone.
      key_ratio: NOAH's published r on this backbone.
      num_classes: Number of classes of the published weights.
      image_size: `(height, width)` of the published recipe, in pixels.
      mean: Per-channel mean that normalises the input, for pixels in 0..1.
      std: Per-channel standard deviation that normalises the input, for pixels in 0..1.
      crop_pct: Side of the centre crop over the side of the resized image, in the evaluation of
        the published numbers.
      interpolation: How that evaluation resizes, "bilinear" or "bicubic".
      decay_all: Whether the recipe's weight decay takes every parameter. Otherwise it spares
        biases, parameters that have one dimension in PyTorch, and `no_decay`.
      no_decay: Paths of further parameters that the recipe's weight decay spares.
      spatial_major: Whether the backbone is a convolutional network, whose maps XLA lays out
        with the positions in front; see `NOAH`.
    """

    build: functools.partial[Any]
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

        Each is a number or a tuple of numbers. A float is a ratio.
        """
        return {key: value for key, value in self.build.keywords.items() if _numbers(value)}


@dataclasses.dataclass(frozen=True)
class Positions:
    """Where a PyTorch state dict tells for which image size its model was made.

    Attributes:
      tensors: Keys and axes whose length is the number of positions. The first key that the
        state dict has is used.
      patch_kernel: Key of the patch embedding's kernel, whose last axis is the patch in pixels.
      class_token: Key of the class token, which takes a position of its own where it is present.
      registers: Key of register tokens; where they are present, the class token has no position.
      antialias: Whether the embeddings are antialiased when they are resized to another image
        size, see `noah_jax.models.positions`.
    """

    tensors: tuple[tuple[str, int], ...]
    patch_kernel: str
    class_token: str | None = None
    registers: str | None = None
    antialias: bool = False


def _same_kind(shapes: Shapes, architecture: Architecture) -> bool:
    return True


def _no_arguments(shapes: Shapes) -> dict[str, Any]:
    return {}


def _as_it_is(state_dict: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    return state_dict


def _published_heads(published: Mapping[str, Any], sizes: Mapping[str, Any]) -> None:
    return None


@dataclasses.dataclass(frozen=True)
class Family:
    """Everything this package knows of a family of backbones.

    The functions get the `Shapes` of a state dict that has the original's names.

    Attributes:
      name: Name of the family, which is also its folder's.
      architectures: The architectures by their registered name, without `noah_`.
      table: Rows of the conversion from and to PyTorch. The first row that matches counts.
      renames: Names that other libraries give to the same tensors.
      regroup: Joins and splits tensors that another library keeps otherwise. It gets the state
        dict after the renames.
      layers: Regular expressions over the paths of the parameters, in the order in which images
        pass them. Numbers that an expression captures count too, so `blocks/(\\d+)/` stands for
        one layer a block. Parameters that match none come last. Without any the order is not
        known.
      positions: Where a state dict tells the image size; `None` where it does not.
      is_kind: Whether a state dict has the kind of blocks that an architecture has, whatever
        their sizes. By default all architectures of the family have the same kind.
      infer_dimensions: The sizes of a state dict, by the name they have in
        `Architecture.dimensions`; zero where the file lacks them.
      infer_arguments: Further arguments of `create_model` that a state dict tells, for switches
        such as ResNet's `stem`.
      likely_num_heads: The usual number of attention heads for other sizes, which no shape tells.
        Called with an architecture's dimensions and with those that a state dict has instead;
        `None` where the published number stays.
    """

    name: str
    architectures: Mapping[str, Architecture]
    table: tuple[Row, ...]
    renames: tuple[Rename, ...] = ()
    regroup: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] = _as_it_is
    layers: tuple[str, ...] = ()
    positions: Positions | None = None
    is_kind: Callable[[Shapes, Architecture], bool] = _same_kind
    infer_dimensions: Callable[[Shapes], dict[str, Any]] = _no_arguments
    infer_arguments: Callable[[Shapes], dict[str, Any]] = _no_arguments
    likely_num_heads: Callable[
        [Mapping[str, Any], Mapping[str, Any]], int | tuple[int, ...] | None
    ] = _published_heads


def check_dimension(key: str, value: Any, published: Any) -> Any:
    """Returns a size as an architecture takes it, a list as a tuple.

    Raises:
      InputError: If it is not of the kind that `published` is.
    """
    many = isinstance(published, tuple)
    value = tuple(map(_plain, value)) if many and isinstance(value, list | tuple) else _plain(value)
    kinds = {type(number) for number in _numbers(published)}
    allowed = int if kinds == {int} else int | float
    numbers = _numbers(value)
    if (
        isinstance(value, tuple) != many
        or len(numbers) != len(_numbers(published))
        or not all(isinstance(x, allowed) and 0 < x < math.inf for x in numbers)
    ):
        what = "integer" if allowed is int else "number"
        what = f"{len(published)} positive {what}s" if many else f"a positive {what}"
        raise InputError(f"{key} must be {what}, such as {published}, got {value!r}")
    return value


def _plain(value: Any) -> Any:
    """Returns NumPy's numbers as Python's; anything else as it is."""
    return value.item() if isinstance(value, np.number) else value


def _numbers(value: Any) -> tuple[int | float, ...]:
    """Returns the number or the numbers of a tuple; none where it is anything else."""
    values = value if isinstance(value, tuple) else (value,)
    plain = all(isinstance(x, int | float) and not isinstance(x, bool) for x in values)
    return values if plain else ()
