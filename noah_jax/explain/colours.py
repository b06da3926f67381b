"""The colours of the maps: one table for each kind, which pictures, page and colour bars share.

A map lies over a grey photograph, so that nothing but the map has colour. The larger a value, the
more opaque its colour. Both tables are perceptually even over grey: equal steps of the value look
equally large (in CIELAB).
"""

from typing import Literal

import matplotlib
import numpy as np
from PIL import Image

Kind = Literal["contributions", "attention"]
KINDS: tuple[Kind, ...] = ("contributions", "attention")

MIDDLE_GREY = 130  # a photograph of middle brightness, and what lies behind a colour bar
_DARKEST_GREY, _BRIGHTEST_GREY = 64, 196
_STEPS = 127  # from no value to the largest
_STRONGEST = 0.9  # opacity of the largest value
_POSITIVE, _NEGATIVE = (214, 40, 40), (38, 92, 224)


def _contribution_table() -> np.ndarray:
    values = np.linspace(-1, 1, 2 * _STEPS + 1)[:, None]
    colours = np.where(values < 0, _NEGATIVE, _POSITIVE)
    return _as_bytes(colours, _STRONGEST * np.abs(values))


def _attention_table() -> np.ndarray:
    way = np.linspace(0, 1, 2001)[:, None]
    colours = 255 * matplotlib.colormaps["viridis"](0.3 + 0.7 * way[:, 0])[:, :3]
    opacity = _STRONGEST * np.sqrt(way)
    over_grey = MIDDLE_GREY * (1 - opacity) + colours * opacity
    steps = np.linalg.norm(np.diff(_lab(over_grey), axis=0), axis=1)
    length = np.concatenate([[0], np.cumsum(steps)])
    even = np.searchsorted(length, np.linspace(0, length[-1], 2 * _STEPS + 1))
    return _as_bytes(colours[even], opacity[even])


def _as_bytes(colours: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    return np.concatenate([colours, 255 * opacity], axis=1).round().astype(np.uint8)


def _lab(rgb: np.ndarray) -> np.ndarray:
    """Converts sRGB `[..., 3]` in 0..255 to CIELAB (white point D65)."""
    linear = np.where(rgb <= 10, rgb / 3294.6, ((rgb / 255 + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = linear @ to_xyz.T / (0.9505, 1, 1.089)
    x, y, z = np.moveaxis(np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


# uint8 `[255, 4]` each, red, green, blue and opacity: from the largest negative contribution over
# none to the largest, and from no attention to the largest.
TABLES: dict[Kind, np.ndarray] = {
    "contributions": _contribution_table(),
    "attention": _attention_table(),
}


def table_index(values: np.ndarray, largest: float, kind: Kind) -> np.ndarray:
    """Returns the row of the kind's table for each value; the colour is linear in the value.

    Args:
      values: A map, of any shape.
      largest: The value in the strongest colour; larger ones have the same.
      kind: What the map shows.
    """
    fraction = values / largest
    if kind == "contributions":
        fraction = (fraction + 1) / 2
    last = len(TABLES[kind]) - 1
    return (np.clip(fraction, 0, 1) * last).round().astype(int)


def greyed(pixels: np.ndarray) -> np.ndarray:
    """Makes a photograph grey, neither black nor white, so that every colour shows on it.

    Args:
      pixels: uint8 `[height, width, 3]`.

    Returns:
      uint8 `[height, width, 3]`.
    """
    brightness = np.asarray(Image.fromarray(pixels).convert("L"), np.float32) / 255
    grey = _DARKEST_GREY + brightness * (_BRIGHTEST_GREY - _DARKEST_GREY)
    return grey.round().astype(np.uint8)[..., None].repeat(3, axis=-1)


def blend(rgba: np.ndarray, background: np.ndarray | int) -> np.ndarray:
    """Lays colours with an opacity over a background.

    Args:
      rgba: uint8 `[..., 4]`.
      background: uint8 `[..., 3]`, or one grey.

    Returns:
      uint8 `[..., 3]`.
    """
    opacity = rgba[..., 3:] / np.float32(255)
    return (rgba[..., :3] * opacity + background * (1 - opacity)).round().astype(np.uint8)
