"""Draws one picture of one image and class: the merged maps and those of every block."""

import numpy as np

from noah_jax.explain.colours import Kind
from noah_jax.explain.explanation import ClassEvidence, Crop, ExplainedImage
from noah_jax.explain.maps import (
    Scale,
    blocks,
    kinds_of,
    logit_sum,
    merged,
    overlay,
    percent,
    reading,
    scale_bar,
)
from noah_jax.explain.photo import describe_crops, framed
from noah_jax.pictures.layout import below, beside, line, pad, paragraph
from noah_jax.pictures.text import PALE_INK

_SIDE, _GAP, _MARGIN = 296, 16, 24
_WIDTH = 3 * _SIDE + 2 * _GAP
_BAR = 240
_MANY_BLOCKS = 16  # more have smaller maps


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
        return panel(f"{kind}, all blocks", drawn, scale_bar(kind, largest, _SIDE))

    photo = below(
        [
            panel("image", framed(image.photo, crop, _SIDE)),
            paragraph(_reading(crop, evidence), _SIDE, size=12, colour=PALE_INK),
        ],
        4,
    )
    parts = [
        _heading(image, evidence, model_name),
        beside(
            [pad(photo, right=_SIDE - photo.shape[1]), *map(map_panel, kinds_of(evidence))], _GAP
        ),
    ]
    if len(evidence.attention) > 1:
        parts += _block_rows(pixels, evidence, scale, cells=cells)
    return pad(below(parts, _GAP), top=_MARGIN, right=_MARGIN, bottom=_MARGIN, left=_MARGIN)


def _heading(image: ExplainedImage, evidence: ClassEvidence, model_name: str | None) -> np.ndarray:
    sum_of_logit = " ".join(logit_sum(evidence, 4))
    numbers = f"probability {percent(evidence.probability)}   {sum_of_logit}"
    lines = [
        line(evidence.name, _WIDTH, size=20, bold=True),
        line(numbers, _WIDTH),
        line(image.path, _WIDTH, colour=PALE_INK, keep_end=True),
    ]
    if model_name is not None:
        lines.append(line(f"model {model_name}", _WIDTH, colour=PALE_INK, keep_end=True))
    return below(lines, 2)


def _reading(crop: Crop, evidence: ClassEvidence) -> str:
    seen = describe_crops([crop])
    legend = reading([evidence])
    return f"{seen[:1].upper()}{seen[1:]}. {legend}" if seen else legend


def _block_rows(
    pixels: np.ndarray, evidence: ClassEvidence, scale: Scale, *, cells: bool
) -> list[np.ndarray]:
    """The maps of every block, in rows as wide as the picture, each kind with its colour bar."""
    count, kinds = len(evidence.attention), kinds_of(evidence)
    # Two blocks fill a row with both kinds; others have rows of their own.
    paired = count == 2 and len(kinds) == 2
    columns = next((n for n in (4, 3, 5) if count % n == 0), 4) if count > 2 else 2
    if count > _MANY_BLOCKS:
        columns = 8
    width = (_WIDTH - _GAP) // 2 if paired else _WIDTH
    side = (width - (columns - 1) * _GAP) // columns

    def tile(number: int, values: np.ndarray, kind: Kind) -> np.ndarray:
        largest = scale.blocks[kind]
        drawn = overlay(pixels, values, largest, kind, side=side, cells=cells)
        return below([line(f"block {number}", side, size=12, colour=PALE_INK), drawn], 2)

    def of_kind(kind: Kind) -> np.ndarray:
        tiles = [tile(i + 1, values, kind) for i, values in enumerate(blocks(evidence, kind))]
        rows = [beside(tiles[i : i + columns], _GAP) for i in range(0, count, columns)]
        title = line(f"{kind} of each block", width - _BAR - _GAP)
        bar = scale_bar(kind, scale.blocks[kind], _BAR)
        heading = beside([title, bar], _GAP)
        return below([pad(heading, right=width - heading.shape[1]), *rows], 4)

    drawn = [of_kind(kind) for kind in kinds]
    return [beside(drawn, _GAP)] if paired else drawn
