"""Draws a confusion matrix as a picture."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_SIDE = 800  # about the width of the matrix in pixels
_MOST_NAMED = 60  # with more classes the picture has no names
_MARGIN = 10
_WHITE, _DARK = np.array([255, 255, 255]), np.array([8, 48, 107])


def draw_confusion(counts: np.ndarray, class_names: Sequence[str]) -> Image.Image:
    """Draws the matrix; the darker a cell, the larger its fraction of the label's images.

    Args:
      counts: Images by label (rows, from the top) and predicted class (columns).
      class_names: Names of the classes.
    """
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    # The square root makes rare confusions visible.
    pixels = _WHITE + np.sqrt(fractions)[..., None] * (_DARK - _WHITE)
    cell = max(1, _SIDE // len(counts))
    matrix = Image.fromarray(pixels.round().astype(np.uint8)).resize(
        (cell * len(counts),) * 2, Image.Resampling.NEAREST
    )
    font_size = min(14, max(8, cell - 2))
    font = ImageFont.load_default(font_size)
    names = list(class_names) if len(class_names) <= _MOST_NAMED else []
    widest = max((round(font.getlength(name)) for name in names), default=0)
    left, top = widest + 2 * _MARGIN, widest + 3 * _MARGIN + 14
    picture = Image.new(
        "RGB", (left + matrix.width + _MARGIN, top + matrix.height + _MARGIN), "white"
    )
    picture.paste(matrix, (left, top))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((left - 1, top - 1, left + matrix.width, top + matrix.height), outline="gray")
    draw.text((left, _MARGIN), "rows: label, columns: predicted", fill="black")
    for index, name in enumerate(names):
        middle = cell * index + cell // 2
        draw.text((left - _MARGIN // 2, top + middle), name, fill="black", font=font, anchor="rm")
        # Pillow draws only horizontal text, so a column's name is drawn apart and rotated.
        strip = Image.new("RGB", (widest + 1, font_size + 4), "white")
        ImageDraw.Draw(strip).text(
            (0, strip.height // 2), name, fill="black", font=font, anchor="lm"
        )
        turned = strip.transpose(Image.Transpose.ROTATE_90)
        picture.paste(
            turned, (left + middle - turned.width // 2, top - _MARGIN // 2 - turned.height)
        )
    return picture
