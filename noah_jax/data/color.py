"""Colour jitter on PIL images: random brightness, contrast and saturation, as torchvision's."""

import numpy as np
from PIL import Image, ImageEnhance

Adjustment = tuple[str, float]  # what, and by which factor; 1.0 changes nothing

_ADJUSTMENTS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


def draw_color_jitter(strength: float, random: np.random.Generator) -> tuple[Adjustment, ...]:
    """Every adjustment once, in random order, its factor uniform in 1 - strength..1 + strength.

    Args:
      strength: the half width of the range, which is cut off below zero.
      random: source of the choices.
    """
    names = list(_ADJUSTMENTS)
    order = np.argsort(random.random(len(names)))
    factors = random.uniform(max(0.0, 1 - strength), 1 + strength, len(names))
    return tuple((names[i], float(factors[i])) for i in order)


def color_jitter(image: Image.Image, adjustments: tuple[Adjustment, ...]) -> Image.Image:
    """The adjustments, one after the other."""
    for name, factor in adjustments:
        image = _ADJUSTMENTS[name](image).enhance(factor)
    return image
