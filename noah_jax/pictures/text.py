"""Writes text on arrays of pixels, in any script, shortened or wrapped where it is too long."""

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from noah_jax.errors import shown
from noah_jax.pictures.fonts import fonts

INK, PALE_INK = "#1f2328", "#57606a"
SIZE = 13  # of text in pixels
_DPI = 100


@dataclasses.dataclass(frozen=True)
class Label:
    """A line of text on a picture.

    Attributes:
      text: The text. A `$` in it means nothing special.
      x: Where the text begins, or its middle or its end (`anchor`), in pixels from the left.
      y: The middle of the line in pixels from the top.
      size: Height of the font in pixels.
      bold: Whether the font is bold.
      colour: A colour as matplotlib knows it.
      anchor: What `x` is.
    """

    text: str
    x: float
    y: float
    size: float = SIZE
    bold: bool = False
    colour: str = INK
    anchor: Literal["left", "center", "right"] = "left"


def write(pixels: np.ndarray, labels: Sequence[Label]) -> np.ndarray:
    """Writes labels on a picture.

    Args:
      pixels: uint8 `[height, width, 3]`; it is not changed.
      labels: The labels.

    Returns:
      uint8 `[height, width, 3]`.
    """
    height, width = pixels.shape[:2]
    # A renderer has no pixel to spare for a letter that reaches over the edge; it cuts it off.
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    canvas = FigureCanvasAgg(figure)
    figure.patch.set_alpha(0)
    for label in labels:
        text = _drawable(label.text)
        figure.text(
            label.x / width,
            1 - label.y / height,
            text,
            fontproperties=_font(text, label.size, bold=label.bold),
            color=label.colour,
            horizontalalignment=label.anchor,
            verticalalignment="center_baseline",
            parse_math=False,
        )
    with warnings.catch_warnings():
        # `Fonts` has told what is missing, in one line.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba()).astype(np.float32)
    colour, opacity = drawn[..., :3], drawn[..., 3:] / 255
    return (pixels * (1 - opacity) + colour * opacity).round().astype(np.uint8)


def text_width(text: str, size: float = SIZE, *, bold: bool = False) -> float:
    """Returns the width of a line of text in pixels."""
    text = _drawable(text)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        return _renderer().get_text_width_height_descent(
            text, _font(text, size, bold=bold), ismath=False
        )[0]


def shorten(
    text: str, width: float, size: float = SIZE, *, bold: bool = False, keep_end: bool = False
) -> str:
    """Shortens a text to a width, with an ellipsis for what is left out.

    Args:
      text: The text.
      width: The width in pixels.
      size: Height of the font in pixels.
      bold: Whether the font is bold.
      keep_end: Leave out the beginning instead of the end, as for paths.
    """
    if text_width(text, size, bold=bold) <= width:
        return text

    def shortened(count: int) -> str:
        if keep_end:
            return "…" + text[len(text) - count :].lstrip()
        return text[:count].rstrip() + "…"

    # The largest number of characters that fit; `low` of them do.
    low, high = 0, len(text)
    while high - low > 1:
        middle = (low + high) // 2
        if text_width(shortened(middle), size, bold=bold) <= width:
            low = middle
        else:
            high = middle
    return shortened(low)


def wrap(text: str, width: float, size: float = SIZE, *, bold: bool = False) -> list[str]:
    """Breaks a text into lines at its spaces; a word that is too long for a line is shortened."""
    lines: list[str] = []
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size, bold=bold) <= width:
            lines[-1] = longer
        else:
            lines.append(shorten(word, width, size, bold=bold))
    return lines


def _drawable(text: str) -> str:
    """Escapes what has no shape, as `shown` does, but for the space that does not break a line."""
    return "\u00a0".join(shown(part) for part in text.split("\u00a0"))


@functools.cache
def _renderer() -> RendererAgg:
    return FigureCanvasAgg(Figure(figsize=(1, 1), dpi=_DPI)).get_renderer()


def _font(text: str, size: float, *, bold: bool) -> FontProperties:
    return FontProperties(
        family=fonts().families(text), size=size * 72 / _DPI, weight="bold" if bold else "normal"
    )
