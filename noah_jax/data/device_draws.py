"""Writes the colour jitter and RandAugment of an image as numbers, for a device to apply.

The host draws as ever; what it draws travels beside the uint8 image as one row of numbers for each
operation: its code, and up to six parameters. `noah_jax.train.device_augment` applies them.
"""

import math
from collections.abc import Sequence

import numpy as np

from noah_jax.data.color import Adjustment
from noah_jax.data.randaugment import (
    OPERATIONS,
    Operation,
    affine_matrix,
    enhancement,
    posterize_mask,
    solarize_added,
    solarize_threshold,
)

COLUMNS = 8  # a code, whether pixels are interpolated bicubically, and six parameters
# What the code of a row means. The order is a part of the format.
CODES = (
    *("nothing", "autocontrast", "equalize", "invert", "posterize", "solarize", "solarize_add"),
    *("brightness", "contrast", "color", "sharpness", "affine"),
)
JITTER_CODES = ("brightness", "contrast", "color")  # All that the colour jitter draws.
_FACTOR_BITS = 16

_BY_NAME = {
    "AutoContrast": "autocontrast",
    "Equalize": "equalize",
    "Invert": "invert",
    "PosterizeIncreasing": "posterize",
    "SolarizeIncreasing": "solarize",
    "SolarizeAdd": "solarize_add",
    "BrightnessIncreasing": "brightness",
    "ContrastIncreasing": "contrast",
    "ColorIncreasing": "color",
    "SharpnessIncreasing": "sharpness",
    "saturation": "color",
}


def encode_draws(
    adjustments: Sequence[Adjustment],
    operations: Sequence[Operation],
    *,
    rows: int,
    size: tuple[int, int],
) -> np.ndarray:
    """Returns what was drawn for one image as float32 `[rows, COLUMNS]`.

    Args:
      adjustments: The colour jitter; it goes first.
      operations: RandAugment's operations, in their order.
      rows: The most operations that an image can have; the rest of the rows say "nothing".
      size: `(height, width)` of the image in pixels.
    """
    out = np.zeros((rows, COLUMNS), np.float32)
    encoded = [_row(_BY_NAME.get(name, name), factor) for name, factor in adjustments]
    encoded += [_operation(operation, size) for operation in operations]
    for i, row in enumerate(encoded):
        out[i, : len(row)] = row
    return out


def rounded_factor(factor: float) -> float:
    """Returns a factor with 16 significant bits.

    Its product with a difference of two levels is then exact in float32, so that devices which
    fuse the product with a sum give the same bits as those that do not.
    """
    fraction, exponent = math.frexp(factor)
    return math.ldexp(round(fraction * 2**_FACTOR_BITS), exponent - _FACTOR_BITS)


def _operation(operation: Operation, size: tuple[int, int]) -> list[float]:
    name = operation.name
    if name == "PosterizeIncreasing":
        return _row("posterize", posterize_mask(operation))
    if name == "SolarizeIncreasing":
        return _row("solarize", solarize_threshold(operation))
    if name == "SolarizeAdd":
        return _row("solarize_add", solarize_added(operation))
    if (matrix := affine_matrix(operation, size)) is not None:
        row = _row("affine", *matrix)
        row[1] = float(operation.interpolation == "bicubic")
        return row
    code = _BY_NAME[name]
    if code in ("brightness", "contrast", "color", "sharpness"):
        return _row(code, enhancement(operation))
    return _row(code)


def _row(code: str, *parameters: float) -> list[float]:
    if code in ("brightness", "contrast", "color", "sharpness"):
        parameters = (rounded_factor(parameters[0]),)
    return [float(CODES.index(code)), 0.0, *parameters]


assert set(OPERATIONS) - set(_BY_NAME) == {
    *("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
}
