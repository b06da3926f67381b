"""Draws attention and contributions over a photograph, on a scale that says what colours mean."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from noah_jax.explain.colours import KINDS, MIDDLE_GREY, TABLES, Kind, blend, greyed, table_index
from noah_jax.explain.explanation import ClassEvidence
from noah_jax.pictures.colour_bar import colour_bar
from noah_jax.pictures.layout import fit_into


@dataclasses.dataclass(frozen=True)
class Scale:
    """The values that are drawn in the strongest colours; colours are linear from 0 to them.

    A kind of which there is no map has none.

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

    by_kind = {kind: [x for x in evidence if kind in kinds_of(x)] for kind in KINDS}
    drawn = {kind: own for kind, own in by_kind.items() if own}
    return Scale(
        merged={kind: largest([merged(x, kind) for x in own]) for kind, own in drawn.items()},
        blocks={kind: largest([blocks(x, kind) for x in own]) for kind, own in drawn.items()},
    )


def kinds_of(evidence: ClassEvidence) -> tuple[Kind, ...]:
    """Returns the kinds of maps that a head has: some have an attention alone."""
    return KINDS if evidence.contributions is not None else ("attention",)


def merged(evidence: ClassEvidence, kind: Kind) -> np.ndarray:
    """Returns the map of all blocks, `[rows, columns]`: the mean attention, or the sum."""
    maps = blocks(evidence, kind)
    return maps.mean(0) if kind == "attention" else maps.sum(0)


def blocks(evidence: ClassEvidence, kind: Kind) -> np.ndarray:
    """Returns the maps of the single blocks, `[blocks, rows, columns]`."""
    if kind == "attention":
        return evidence.attention
    assert evidence.contributions is not None
    return evidence.contributions


def caption(evidence: ClassEvidence, kind: Kind) -> str:
    """Names a kind of maps, and says where all classes share one."""
    shared = kind == "attention" and evidence.shared_attention
    return f"{kind}, the same for all classes" if shared else kind


def reading(evidence: Sequence[ClassEvidence]) -> str:
    """Says in a sentence or two how to read the maps of one or several heads."""
    parts = []
    if any(x.contributions is not None for x in evidence):
        parts.append("Contributions: red adds to the logit, blue subtracts from it.")
    parts.append("Attention: the brighter, the more.")
    if any(x.shared_attention for x in evidence):
        all_heads = all(x.shared_attention for x in evidence)
        head = "This head has" if all_heads else "A head without contributions has"
        parts.append(f"{head} the same attention for all classes.")
    return " ".join(parts)


def logit_sum(evidence: ClassEvidence, digits: int) -> list[str]:
    """Returns the parts of a line that says what the logit is the sum of, if it is one."""
    logit = f"logit {evidence.logit:.{digits}f}"
    if (sums := evidence.sums) is None:
        return [logit]
    total, bias = sums
    sign = "-" if bias < 0 else "+"
    return [logit, f"= contributions {total:.{digits}f}", f"{sign} bias {abs(bias):.{digits}f}"]


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
