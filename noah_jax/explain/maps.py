"""Draws attention and contributions over a photograph, on a scale that says what colours mean."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from noah_jax.explain.colours import KINDS, MIDDLE_GREY, TABLES, Kind, blend, greyed, table_index
from noah_jax.explain.explanation import ClassEvidence
from noah_jax.pictures.colour_bar import colour_bar
from noah_jax.pictures.layout import fit_into

CAPTIONS: dict[Kind, str] = {"contributions": "contributions", "attention": "attention"}


@dataclasses.dataclass(frozen=True)
class Scale:
    """The values that are drawn in the strongest colours; colours are linear from 0 to them.

    Attributes:
      merged: The largest value (contributions: by absolute value) with all blocks merged.
      blocks: The largest value of a single block.
    """

    merged: dict[Kind, float]
    blocks: dict[Kind, float]


def common_scale(evidence: Sequence[ClassEvidence]) -> Scale:
    """Returns one scale for the maps of several classes and models, such as all of one image.

    Merged attention is a mean and has no such peaks as single blocks, and merged contributions
    are a sum; so they have a scale apart.
    """

    def largest(maps: Sequence[np.ndarray]) -> float:
        return max(float(np.abs(values).max()) for values in maps) or 1.0

    return Scale(
        merged={kind: largest([merged(x, kind) for x in evidence]) for kind in KINDS},
        blocks={kind: largest([blocks(x, kind) for x in evidence]) for kind in KINDS},
    )


def merged(evidence: ClassEvidence, kind: Kind) -> np.ndarray:
    """Returns the map of all blocks, `[rows, columns]`."""
    if kind == "contributions":
        return evidence.merged_contributions
    return evidence.merged_attention


def blocks(evidence: ClassEvidence, kind: Kind) -> np.ndarray:
    """Returns the maps of the single blocks, `[head_num, rows, columns]`."""
    return evidence.contributions if kind == "contributions" else evidence.attention


def overlay(
    pixels: np.ndarray, values: np.ndarray, largest: float, kind: Kind, *, side: int, cells: bool
) -> np.ndarray:
    """Draws a map over a photograph, which becomes grey.

    Args:
      pixels: The model's input, uint8 `[height, width, 3]`.
      values: The map, `[rows, columns]`.
      largest: The value that is drawn in the strongest colour.
      kind: What the map shows.
      side: The longer side of the result in pixels.
      cells: Draw each value as a rectangle instead of a smooth surface.

    Returns:
      uint8 `[height, width, 3]`.
    """
    photo = fit_into(greyed(pixels), side)
    surface = _surface(values, photo.shape[:2], cells=cells)
    return blend(TABLES[kind][table_index(surface, largest, kind)], photo)


def scale_bar(kind: Kind, largest: float, width: int) -> np.ndarray:
    """Draws the colour bar of a kind, as the colours look over a photograph of middle grey."""
    values = [-largest, largest, 0] if kind == "contributions" else [0, largest, largest / 2]
    last = len(TABLES[kind]) - 1
    places = table_index(np.array(values), largest, kind) / last
    ticks = [
        (float(place), short_number(value, kind))
        for place, value in zip(places, values, strict=True)
    ]
    return colour_bar(blend(TABLES[kind], MIDDLE_GREY), ticks, width)


def short_number(value: float, kind: Kind) -> str:
    """Formats a value with three significant digits; contributions have a sign."""
    text = f"{value:.3g}" if value else "0"
    return f"+{text}" if kind == "contributions" and value > 0 else text


def percent(probability: float) -> str:
    """Formats a probability in percent, on one line; neither 0 nor 100 unless it is exactly so."""
    if 0 < probability < 5e-5:
        return "<\u00a00.01\u00a0%"
    if 1 - 5e-5 < probability < 1:
        return ">\u00a099.99\u00a0%"
    return f"{100 * probability:.2f}\u00a0%"


def _surface(values: np.ndarray, shape: tuple[int, ...], *, cells: bool) -> np.ndarray:
    """Enlarges a map `[rows, columns]` to `[height, width]`.

    A smooth surface has each value at the middle of its cell and none beyond its neighbours'
    values between them. The page's script computes the same.
    """
    down, across = (
        _weights(count, length, cells=cells)
        for count, length in zip(values.shape, shape, strict=True)
    )
    return down @ values @ across.T


def _weights(count: int, length: int, *, cells: bool) -> np.ndarray:
    """Returns how much each of `count` values counts at each of `length` places."""
    place = (np.arange(length) + 0.5) / length * count - 0.5
    before = np.clip(np.floor(place), 0, count - 1).astype(int)
    after = np.minimum(before + 1, count - 1)
    way = np.clip(place - before, 0, 1)
    way = np.round(way) if cells else way * way * (3 - 2 * way)
    weights = np.zeros((length, count))
    weights[np.arange(length), before] += 1 - way
    weights[np.arange(length), after] += way
    return weights
