"""Draws one picture of one image and class: the merged maps and those of every block."""

import numpy as np

from noah_jax.explain.colours import KINDS, Kind
from noah_jax.explain.explanation import ClassEvidence, Crop, ExplainedImage
from noah_jax.explain.maps import (
    CAPTIONS,
    Scale,
    blocks,
    merged,
    overlay,
    percent,
    scale_bar,
)
from noah_jax.explain.photo import describe_crops, framed
from noah_jax.pictures.layout import below, beside, line, pad, paragraph
from noah_jax.pictures.text import PALE_INK

_SIDE, _GAP, _MARGIN = 296, 16, 24
_WIDTH = 3 * _SIDE + 2 * _GAP
_BAR = 240


def draw_class(
    image: ExplainedImage,
    model: int,
    evidence: ClassEvidence,
    scale: Scale,
    *,
    model_name: str | None,
    cells: bool,
) -> np.ndarray:
    """Draws the image, the merged maps and, below them, the maps of every block.

    Args:
      image: The image.
      model: Index of the model among those that explain the image.
      evidence: The class; one of this model's explanation.
      scale: The colour scale.
      model_name: Name of the model, if the picture is to tell it.
      cells: Draw each position as a rectangle instead of a smooth surface.

    Returns:
      uint8 `[height, width, 3]`.
    """
    pixels = image.by_model[model].pixels
    crop = image.crops[model]

    def panel(caption: str, picture: np.ndarray, bar: np.ndarray | None = None) -> np.ndarray:
        parts = [line(caption, _SIDE), picture]
        return below([*parts, bar] if bar is not None else parts, 4)

    def map_panel(kind: Kind) -> np.ndarray:
        largest = scale.merged[kind]
        drawn = overlay(pixels, merged(evidence, kind), largest, kind, side=_SIDE, cells=cells)
        return panel(f"{CAPTIONS[kind]}, all blocks", drawn, scale_bar(kind, largest, _SIDE))

    photo = below(
        [
            panel("image", framed(image.photo, crop, _SIDE)),
            paragraph(_reading(crop), _SIDE, size=12, colour=PALE_INK),
        ],
        4,
    )
    parts = [
        _heading(image, evidence, model_name),
        beside([pad(photo, right=_SIDE - photo.shape[1]), *map(map_panel, KINDS)], _GAP),
    ]
    if len(evidence.bias) > 1:
        parts += _block_rows(pixels, evidence, scale, cells=cells)
    return pad(below(parts, _GAP), top=_MARGIN, right=_MARGIN, bottom=_MARGIN, left=_MARGIN)


def _heading(image: ExplainedImage, evidence: ClassEvidence, model_name: str | None) -> np.ndarray:
    total = float(evidence.contributions.sum(dtype=np.float64))
    bias = float(evidence.bias.sum(dtype=np.float64))
    numbers = (
        f"probability {percent(evidence.probability)}   logit {evidence.logit:.4f} ="
        f" contributions {total:.4f} {'-' if bias < 0 else '+'} bias {abs(bias):.4f}"
    )
    lines = [
        line(evidence.name, _WIDTH, size=20, bold=True),
        line(numbers, _WIDTH),
        line(image.path, _WIDTH, colour=PALE_INK, keep_end=True),
    ]
    if model_name is not None:
        lines.append(line(f"model {model_name}", _WIDTH, colour=PALE_INK, keep_end=True))
    return below(lines, 2)


def _reading(crop: Crop) -> str:
    seen = describe_crops([crop])
    legend = "Red adds to the logit, blue subtracts from it."
    return f"{seen[:1].upper()}{seen[1:]}. {legend}" if seen else legend


def _block_rows(
    pixels: np.ndarray, evidence: ClassEvidence, scale: Scale, *, cells: bool
) -> list[np.ndarray]:
    """The maps of every block, in rows as wide as the picture, each kind with its colour bar."""
    count = len(evidence.bias)
    # Two blocks fill a row with both kinds; others have rows of their own.
    columns = 2 if count == 2 else next((n for n in (4, 3, 5) if count % n == 0), 4)
    width = (_WIDTH - _GAP) // 2 if count == 2 else _WIDTH
    side = (width - (columns - 1) * _GAP) // columns

    def tile(number: int, values: np.ndarray, kind: Kind) -> np.ndarray:
        largest = scale.blocks[kind]
        drawn = overlay(pixels, values, largest, kind, side=side, cells=cells)
        return below([line(f"block {number}", side, size=12, colour=PALE_INK), drawn], 2)

    def of_kind(kind: Kind) -> np.ndarray:
        tiles = [tile(i + 1, values, kind) for i, values in enumerate(blocks(evidence, kind))]
        rows = [beside(tiles[i : i + columns], _GAP) for i in range(0, count, columns)]
        title = line(f"{CAPTIONS[kind]} of each block", width - _BAR - _GAP)
        bar = scale_bar(kind, scale.blocks[kind], _BAR)
        heading = beside([title, bar], _GAP)
        return below([pad(heading, right=width - heading.shape[1]), *rows], 4)

    kinds = [of_kind(kind) for kind in KINDS]
    return [beside(kinds, _GAP)] if count == 2 else kinds
