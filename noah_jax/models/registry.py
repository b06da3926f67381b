"""What the registry knows of an architecture."""

import dataclasses
import functools

from flax import nnx

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


NARROW = 192  # up to here XLA's two ways to multiply on CPUs are equally fast


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One backbone, with the facts it was published with.

    Attributes:
      build: the module's class with the architecture's own arguments bound, called as
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
      dense: whether matrix products or convolutions of more than `NARROW` channels make up
        most of the evaluation.
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
    dense: bool = True
