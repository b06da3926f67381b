"""RandAugment (Cubuk et al., 2020, arXiv:1909.13719) on PIL images, as in timm.

The 15 operations are those of timm's "increasing" set, in which a larger magnitude always
changes an image more. timm writes the settings as one word: `rand-m9-mstd0.5-inc1` is
`RandAugment(num_ops=2, magnitude=9.0, magnitude_std=0.5)`.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from noah_jax.data.geometry import draw_interpolation
from noah_jax.errors import InputError

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
MAX_MAGNITUDE = 10.0
MAX_DEGREES = 30.0
MAX_SHEAR = 0.3
_MAX_SHIFT = 0.45  # of the image's width or height
_MAX_ENHANCEMENT = 0.9
_MAX_ADDED = 110  # levels added to dark pixels

Fill = tuple[int, int, int]  # a colour, in levels of 0..255


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation with its random choices.

    Attributes:
      name: One of `OPERATIONS`.
      magnitude: Strength in 0..10.
      negated: Whether the operation goes the other way, such as to the left or darker.
        Operations without a direction ignore it.
      interpolation: "bilinear" or "bicubic", for operations that move pixels.
    """

    name: str
    magnitude: float
    negated: bool
    interpolation: str


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """The distribution that operations are drawn from.

    Attributes:
      num_ops: Number of operations drawn for an image, with replacement.
      magnitude: Mean of the magnitudes, in 0..10.
      magnitude_std: Standard deviation of the magnitudes, which are clipped to 0..10.
      probability: Probability that a drawn operation is applied.

    Raises:
      InputError: If a value is out of its range.
    """

    num_ops: int = 2
    magnitude: float = 9.0
    magnitude_std: float = 0.5
    probability: float = 0.5

    def __post_init__(self) -> None:
        if self.num_ops < 1:
            raise InputError(f"data.rand_augment.num_ops must be at least 1, got {self.num_ops}")
        for name, top in (("magnitude", MAX_MAGNITUDE), ("probability", 1.0)):
            if not 0 <= getattr(self, name) <= top:
                raise InputError(
                    f"data.rand_augment.{name} must be in 0..{top:g}, got {getattr(self, name)}"
                )
        if not 0 <= self.magnitude_std < math.inf:
            raise InputError(
                f"data.rand_augment.magnitude_std must not be negative, got {self.magnitude_std}"
            )

    def draw(self, random: np.random.Generator, interpolation: str) -> tuple[Operation, ...]:
        """Draws the operations for one image, in the order in which they are applied.

        Args:
          random: Generator of the random choices.
          interpolation: "bilinear", "bicubic", or "random", which draws one for each operation.
        """
        names = random.integers(len(OPERATIONS), size=self.num_ops)
        return tuple(
            Operation(
                name=_NAMES[name],
                magnitude=min(max(random.normal(self.magnitude, self.magnitude_std), 0.0), 10.0),
                negated=bool(random.random() < 0.5),
                interpolation=draw_interpolation(interpolation, random),
            )
            for name in names
            if random.random() < self.probability
        )


def mean_color(mean: Sequence[float]) -> Fill:
    """Returns the original's fill: the mean of the pixels, given in 0..1, in levels of 0..255."""
    red, green, blue = (min(255, round(255 * value)) for value in mean)
    return red, green, blue


def rand_augment(image: Image.Image, operations: tuple[Operation, ...], fill: Fill) -> Image.Image:
    """Applies operations to an image.

    Args:
      image: RGB image.
      operations: The operations, in this order.
      fill: Colour of the pixels that come from beyond the image.
    """
    for operation in operations:
        image = OPERATIONS[operation.name](image, operation, fill)
    return image


def _signed(operation: Operation, top: float) -> float:
    value = operation.magnitude / MAX_MAGNITUDE * top
    return -value if operation.negated else value


def _auto_contrast(image: Image.Image, operation: Operation, fill: Fill) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, operation: Operation, fill: Fill) -> Image.Image:
    return ImageOps.equalize(image)


def _invert(image: Image.Image, operation: Operation, fill: Fill) -> Image.Image:
    return ImageOps.invert(image)


def _rotate(image: Image.Image, operation: Operation, fill: Fill) -> Image.Image:
    degrees = _signed(operation, MAX_DEGREES)
    return image.rotate(degrees, _RESAMPLING[operation.interpolation], fillcolor=fill)


def posterize_mask(operation: Operation) -> int:
    """Returns the bits of a level that "PosterizeIncreasing" keeps."""
    bits = 4 - int(operation.magnitude / MAX_MAGNITUDE * 4)
    # ImageOps.posterize refuses to keep 0 bits (a black image), which magnitude 10 asks for.
    return 0xFF & ~(0xFF >> bits)


def solarize_threshold(operation: Operation) -> int:
    """Returns the level from which on "SolarizeIncreasing" inverts."""
    return 256 - int(operation.magnitude / MAX_MAGNITUDE * 256)


def solarize_added(operation: Operation) -> int:
    """Returns the levels that "SolarizeAdd" adds to dark pixels."""
    return int(operation.magnitude / MAX_MAGNITUDE * _MAX_ADDED)


def enhancement(operation: Operation) -> float:
    """Returns the factor of the operations that enhance a property."""
    return 1.0 + _signed(operation, _MAX_ENHANCEMENT)


def affine_matrix(operation: Operation, size: tuple[int, int]) -> tuple[float, ...] | None:
    """Returns where the pixels of an operation that moves them come from.

    Args:
      operation: The operation.
      size: `(height, width)` of the image in pixels.

    Returns:
      `(a, b, c, d, e, f)`: the pixel at `(x, y)` comes from `(a x + b y + c, d x + e y + f)`, in
      pixels from the upper left corner. `None` for operations that move none.
    """
    height, width = size
    name = operation.name
    if name == "Rotate":
        angle = math.radians(_signed(operation, MAX_DEGREES))
        cos, sin = math.cos(angle), math.sin(angle)
        x, y = width / 2, height / 2
        return cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y
    if name == "ShearX":
        return 1, _signed(operation, MAX_SHEAR), 0, 0, 1, 0
    if name == "ShearY":
        return 1, 0, 0, _signed(operation, MAX_SHEAR), 1, 0
    if name == "TranslateXRel":
        return 1, 0, _signed(operation, _MAX_SHIFT) * width, 0, 1, 0
    if name == "TranslateYRel":
        return 1, 0, 0, 0, 1, _signed(operation, _MAX_SHIFT) * height
    return None


def _posterize(image: Image.Image, operation: Operation, fill: Fill) -> Image.Image:
    mask = posterize_mask(operation)
    return image.point([value & mask for value in range(256)] * 3)


def _solarize(image: Image.Image, operation: Operation, fill: Fill) -> Image.Image:
    return ImageOps.solarize(image, solarize_threshold(operation))


def _solarize_add(image: Image.Image, operation: Operation, fill: Fill) -> Image.Image:
    added = solarize_added(operation)
    return image.point([min(255, v + added) if v < 128 else v for v in range(256)] * 3)


def _enhance(kind: type) -> Callable[[Image.Image, Operation, Fill], Image.Image]:
    def enhance(image: Image.Image, operation: Operation, fill: Fill) -> Image.Image:
        return kind(image).enhance(enhancement(operation))

    return enhance


def _affine(image: Image.Image, operation: Operation, fill: Fill) -> Image.Image:
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        affine_matrix(operation, (image.height, image.width)),
        _RESAMPLING[operation.interpolation],
        fillcolor=fill,
    )


# The keys are timm's names.
OPERATIONS: dict[str, Callable[[Image.Image, Operation, Fill], Image.Image]] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": _invert,
    "Rotate": _rotate,
    "PosterizeIncreasing": _posterize,
    "SolarizeIncreasing": _solarize,
    "SolarizeAdd": _solarize_add,
    "ColorIncreasing": _enhance(ImageEnhance.Color),
    "ContrastIncreasing": _enhance(ImageEnhance.Contrast),
    "BrightnessIncreasing": _enhance(ImageEnhance.Brightness),
    "SharpnessIncreasing": _enhance(ImageEnhance.Sharpness),
    "ShearX": _affine,
    "ShearY": _affine,
    "TranslateXRel": _affine,
    "TranslateYRel": _affine,
}
_NAMES = tuple(OPERATIONS)
