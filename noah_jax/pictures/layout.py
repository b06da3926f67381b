"""Puts pictures below and beside each other. A picture is uint8 `[height, width, 3]`."""

import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image

from noah_jax.pictures.text import INK, SIZE, Label, shorten, wrap, write

LINE = 20  # height of a line of text in pixels
WHITE = 255


def blank(height: int, width: int) -> np.ndarray:
    """Returns a white picture."""
    return np.full((height, width, 3), WHITE, np.uint8)


def below(pictures: Sequence[np.ndarray], gap: int = 0) -> np.ndarray:
    """Puts pictures below each other, `gap` pixels apart, the left sides aligned."""
    width = max(picture.shape[1] for picture in pictures)
    parts = []
    for number, picture in enumerate(pictures):
        if number and gap:
            parts.append(blank(gap, width))
        parts.append(pad(picture, right=width - picture.shape[1]))
    return np.concatenate(parts, axis=0)


def beside(pictures: Sequence[np.ndarray], gap: int = 0) -> np.ndarray:
    """Puts pictures beside each other, `gap` pixels apart, the tops aligned."""
    turned = [picture.swapaxes(0, 1) for picture in pictures]
    return below(turned, gap).swapaxes(0, 1)


def pad(
    picture: np.ndarray, *, top: int = 0, right: int = 0, bottom: int = 0, left: int = 0
) -> np.ndarray:
    """Adds white pixels round a picture."""
    return np.pad(picture, ((top, bottom), (left, right), (0, 0)), constant_values=np.uint8(WHITE))


def line(
    text: str,
    width: int,
    *,
    size: float = SIZE,
    bold: bool = False,
    colour: str = INK,
    anchor: Literal["left", "center", "right"] = "left",
    keep_end: bool = False,
) -> np.ndarray:
    """Draws one line of text, shortened to a width in pixels; see `Label` and `shorten`."""
    height = round(LINE * size / SIZE)
    text = shorten(text, width, size, bold=bold, keep_end=keep_end)
    x = {"left": 0, "center": width / 2, "right": width}[anchor]
    return write(blank(height, width), [Label(text, x, height / 2, size, bold, colour, anchor)])


def paragraph(text: str, width: int, *, size: float = SIZE, colour: str = INK) -> np.ndarray:
    """Draws text in as many lines as it takes."""
    lines = wrap(text, width, size)
    height = round(LINE * size / SIZE)
    labels = [
        Label(text, 0, height * (number + 0.5), size, colour=colour)
        for number, text in enumerate(lines)
    ]
    return write(blank(height * len(lines), width), labels)


def fit_into(pixels: np.ndarray, side: int) -> np.ndarray:
    """Resizes a picture smoothly so that its longer side has `side` pixels."""
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # Lanczos is sharper, but rings round the edges of what is enlarged much.
    how = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(pixels).resize(size, how))


def encode_png(picture: np.ndarray) -> bytes:
    """Encodes a picture, uint8 `[height, width, 3]`, as PNG."""
    png = io.BytesIO()
    Image.fromarray(picture).save(png, "PNG")
    return png.getvalue()
