"""Draws the bar that says which value a colour stands for."""

from collections.abc import Sequence

import numpy as np

from noah_jax.pictures.layout import blank
from noah_jax.pictures.text import PALE_INK, Label, text_width, write

_HEIGHT, _TICK, _TEXT = 12, 4, 12  # of the bar, a tick and the numbers, in pixels
_SPACE = 8  # between two numbers
_FRAME = (140, 140, 140)


def colour_bar(colours: np.ndarray, ticks: Sequence[tuple[float, str]], width: int) -> np.ndarray:
    """Draws a horizontal bar with numbers below it.

    Args:
      colours: uint8 `[number, 3]`, the colours from the left end to the right end, evenly spaced.
      ticks: Where numbers stand, from 0 (the left end) to 1, and the numbers; the most important
        first, because one that has no room beside those before it is left out.
      width: The width of the picture in pixels.

    Returns:
      uint8 `[height, width, 3]`.
    """
    picture = blank(_HEIGHT + _TICK + _TEXT + 4, width)
    nearest = np.linspace(0, len(colours) - 1, width - 2).round().astype(int)
    picture[:_HEIGHT] = _FRAME
    picture[1 : _HEIGHT - 1, 1:-1] = colours[nearest]
    labels: list[Label] = []
    taken: list[tuple[float, float]] = []
    for place, text in ticks:
        x = round(1 + place * (width - 3))
        half = text_width(text, _TEXT) / 2
        middle = min(max(x, half + 1), width - half - 1)  # the numbers at the ends stay inside
        left, right = middle - half - _SPACE, middle + half + _SPACE
        if any(left < other[1] and other[0] < right for other in taken):
            continue
        taken.append((middle - half, middle + half))
        picture[_HEIGHT : _HEIGHT + _TICK, x] = _FRAME
        y = _HEIGHT + _TICK + _TEXT / 2 + 2
        labels.append(Label(text, middle, y, _TEXT, colour=PALE_INK, anchor="center"))
    return write(picture, labels)
