"""Colour jitter on PIL images: random brightness, contrast and saturation, as in torchvision."""

import numpy as np
from PIL import Image, ImageEnhance

Adjustment = tuple[str, float]  # the property and its factor; a factor of 1.0 changes nothing

_ADJUSTMENTS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}
NUM_ADJUSTMENTS = len(_ADJUSTMENTS)


def draw_color_jitter(strength: float, random: np.random.Generator) -> tuple[Adjustment, ...]:
    """Draws every adjustment once, in random order.

    Args:
      strength: Half the width of the range of factors. They are uniform in
        `1 - strength`..`1 + strength`, where the lower end is at least 0.
      random: Generator of the random choices.
    """
    names = list(_ADJUSTMENTS)
    order = np.argsort(random.random(len(names)))
    factors = random.uniform(max(0.0, 1 - strength), 1 + strength, len(names))
    return tuple((names[i], float(factors[i])) for i in order)


def color_jitter(image: Image.Image, adjustments: tuple[Adjustment, ...]) -> Image.Image:
    """Applies the adjustments one after the other."""
    for name, factor in adjustments:
        image = _ADJUSTMENTS[name](image).enhance(factor)
    return image
