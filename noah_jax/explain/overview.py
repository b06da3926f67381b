"""Draws one picture of several images: what the head sees of each class, all blocks merged."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from noah_jax.explain.colours import Kind
from noah_jax.explain.explanation import ClassEvidence, ExplainedImage
from noah_jax.explain.maps import (
    Scale,
    common_scale,
    kinds_of,
    merged,
    overlay,
    percent,
    reading,
    scale_bar,
)
from noah_jax.explain.photo import framed
from noah_jax.pictures.layout import below, beside, line, pad, paragraph
from noah_jax.pictures.text import PALE_INK

MOST_IMAGES = 20

_GAP, _WIDE_GAP, _MARGIN = 12, 28, 24
_MOST_COLUMNS = 4  # classes side by side; more take several lines


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How a row is arranged.

    Attributes:
      side: The longer side of a map in pixels.
      beside: Whether the attention of a class is beside its contributions, each with its colour
        bar. It is below them otherwise, and the colour bars are below the image.
    """

    side: int
    beside: bool


# One or two classes leave room beside each map. Either is about as wide as a page on GitHub.
_FEW, _MANY = _Layout(148, True), _Layout(176, False)


def draw_overview(
    images: Sequence[ExplainedImage],
    names: Sequence[str],
    models: Sequence[str],
    *,
    cells: bool = False,
) -> np.ndarray:
    """Draws each image and, for every class, the merged maps that its head has.

    Args:
      images: The images.
      names: Name of each image.
      models: Name of each model; written if there are several.
      cells: Draw each position as a rectangle instead of a smooth surface.

    Returns:
      uint8 `[height, width, 3]`. All maps of an image share one scale for contributions and one
      for attention, which are those of the page.
    """
    few = all(len(one.classes) <= 2 for image in images for one in image.by_model)
    layout = _FEW if few else _MANY
    rows = []
    for image, name in zip(images, names, strict=True):
        scale = common_scale([x for one in image.by_model for x in one.classes])
        for i, model in enumerate(models):
            headings = (name, model if len(models) > 1 else "")
            rows.append(_draw_row(image, i, headings, scale, layout, cells=cells))
    width = max(row.shape[1] for row in rows)
    classes = [x for image in images for one in image.by_model for x in one.classes]
    legend = f"{reading(classes)} Colours are linear, and each image has its own scale."
    picture = below([*rows, paragraph(legend, width, size=12, colour=PALE_INK)], _WIDE_GAP)
    return pad(picture, top=_MARGIN, right=_MARGIN, bottom=_MARGIN, left=_MARGIN)


def _draw_row(
    image: ExplainedImage,
    model: int,
    headings: tuple[str, str],
    scale: Scale,
    layout: _Layout,
    *,
    cells: bool,
) -> np.ndarray:
    pixels = image.by_model[model].pixels

    def tile(evidence: ClassEvidence, kind: Kind) -> np.ndarray:
        values, largest = merged(evidence, kind), scale.merged[kind]
        drawn = overlay(pixels, values, largest, kind, side=layout.side, cells=cells)
        if layout.beside:
            drawn = below([drawn, scale_bar(kind, largest, layout.side)], 4)
        return _captioned(kind, drawn, layout)

    def column(evidence: ClassEvidence) -> np.ndarray:
        tiles = [tile(evidence, kind) for kind in kinds_of(evidence)]
        maps = beside(tiles, _GAP) if layout.beside else below(tiles, _GAP // 2)
        numbers = f"{percent(evidence.probability)}, logit {evidence.logit:.2f}"
        width = maps.shape[1]
        heading = below([line(evidence.name, width, bold=True), line(numbers, width, size=12)])
        return below([heading, maps], _GAP // 2)

    columns = [column(evidence) for evidence in image.by_model[model].classes]
    count = -(-len(columns) // -(-len(columns) // _MOST_COLUMNS))  # lines of about equal length
    lines = [beside(columns[i : i + count], _GAP) for i in range(0, len(columns), count)]
    first = _side_column(image, model, headings, scale, layout)
    return beside([first, below(lines, _GAP)], _GAP)


def _side_column(
    image: ExplainedImage, model: int, headings: tuple[str, str], scale: Scale, layout: _Layout
) -> np.ndarray:
    """The names of image and model, the image, and the scales if they are not below the maps."""
    side = layout.side
    photo = framed(image.photo, image.crops[model], side)
    photo = pad(photo, right=side - photo.shape[1], bottom=side - photo.shape[0])
    parts = [_captioned("image", photo, layout)]
    if not layout.beside:
        for kind in kinds_of(image.by_model[model].classes[0]):
            bar = scale_bar(kind, scale.merged[kind], side)
            parts.append(_captioned(f"scale of {kind}", bar, layout))
    name, model_name = headings
    heading = below([line(name, side, bold=True), line(model_name, side, size=12, keep_end=True)])
    return below([heading, *parts], _GAP // 2)


def _captioned(caption: str, picture: np.ndarray, layout: _Layout) -> np.ndarray:
    return below([line(caption, layout.side, size=12, colour=PALE_INK), picture])
