"""Draws one picture of several images: what the head sees of each class, all blocks merged."""

from collections.abc import Sequence

import numpy as np

from noah_jax.explain.colours import KINDS, Kind
from noah_jax.explain.explanation import ClassEvidence, ExplainedImage
from noah_jax.explain.maps import CAPTIONS, Scale, common_scale, merged, overlay, percent, scale_bar
from noah_jax.explain.photo import framed
from noah_jax.pictures.layout import below, beside, line, pad, paragraph
from noah_jax.pictures.text import PALE_INK

MOST_IMAGES = 20

_SIDE, _GAP, _WIDE_GAP, _MARGIN = 176, 12, 28, 24
_MOST_COLUMNS = 4  # classes side by side; more take several lines


def draw_overview(
    images: Sequence[ExplainedImage],
    names: Sequence[str],
    models: Sequence[str],
    *,
    cells: bool = False,
) -> np.ndarray:
    """Draws each image and, for every class, the merged contributions and attention.

    Args:
      images: The images.
      names: Name of each image.
      models: Name of each model; written if there are several.
      cells: Draw each position as a rectangle instead of a smooth surface.

    Returns:
      uint8 `[height, width, 3]`. All maps of an image share one scale for contributions and one
      for attention, which are those of the page.
    """
    rows = []
    for image, name in zip(images, names, strict=True):
        scale = common_scale([x for one in image.by_model for x in one.classes])
        for i, model in enumerate(models):
            headings = (name, model if len(models) > 1 else "")
            rows.append(_draw_row(image, i, headings, scale, cells=cells))
    width = max(row.shape[1] for row in rows)
    legend = (
        "Contributions: red adds to the logit, blue subtracts from it. Attention: the brighter,"
        " the more. Colours are linear, and each image has its own scale."
    )
    picture = below([*rows, paragraph(legend, width, size=12, colour=PALE_INK)], _WIDE_GAP)
    return pad(picture, top=_MARGIN, right=_MARGIN, bottom=_MARGIN, left=_MARGIN)


def _draw_row(
    image: ExplainedImage, model: int, headings: tuple[str, str], scale: Scale, *, cells: bool
) -> np.ndarray:
    pixels = image.by_model[model].pixels

    def tile(evidence: ClassEvidence, kind: Kind) -> np.ndarray:
        values, largest = merged(evidence, kind), scale.merged[kind]
        drawn = overlay(pixels, values, largest, kind, side=_SIDE, cells=cells)
        return _captioned(CAPTIONS[kind], drawn)

    def column(evidence: ClassEvidence) -> np.ndarray:
        heading = [
            line(evidence.name, _SIDE, bold=True),
            line(f"{percent(evidence.probability)}, logit {evidence.logit:.2f}", _SIDE, size=12),
        ]
        return below([below(heading), *(tile(evidence, kind) for kind in KINDS)], _GAP // 2)

    columns = [column(evidence) for evidence in image.by_model[model].classes]
    count = -(-len(columns) // -(-len(columns) // _MOST_COLUMNS))  # lines of about equal length
    lines = [beside(columns[i : i + count], _GAP) for i in range(0, len(columns), count)]
    return beside([_side_column(image, model, headings, scale), below(lines, _GAP)], _GAP)


def _side_column(
    image: ExplainedImage, model: int, headings: tuple[str, str], scale: Scale
) -> np.ndarray:
    """The names of image and model, the image, and the scales of the maps beside it."""
    photo = framed(image.photo, image.crops[model], _SIDE)
    photo = pad(photo, right=_SIDE - photo.shape[1], bottom=_SIDE - photo.shape[0])
    bars = [
        _captioned(f"scale of {CAPTIONS[kind]}", scale_bar(kind, scale.merged[kind], _SIDE))
        for kind in KINDS
    ]
    name, model_name = headings
    heading = below([line(name, _SIDE, bold=True), line(model_name, _SIDE, size=12, keep_end=True)])
    return below([heading, _captioned("image", photo), *bars], _GAP // 2)


def _captioned(caption: str, picture: np.ndarray) -> np.ndarray:
    return below([line(caption, _SIDE, size=12, colour=PALE_INK), picture])
