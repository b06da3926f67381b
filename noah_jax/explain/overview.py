"""Draws one picture of several images: what the head sees of each class, all blocks merged."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from noah_jax.explain.explanation import ClassEvidence, Explanation
from noah_jax.explain.overlay import Kind, enlarge, overlay

MOST_IMAGES = 20

_GAP, _WIDE_GAP = 6, 24
_FONT, _LINE = 28, 36
_LEGEND = (
    "yellow: attention; red: adds to the logit; blue: subtracts from it; each row has one scale"
)


def draw_overview(rows: Sequence[tuple[str, Explanation]]) -> Image.Image:
    """Draws each image and, for every class, the merged attention and contributions.

    Args:
      rows: The name of each row, and the explanation of one image by one model. All maps of a row
        share one colour scale for attention and one for contributions.
    """
    pictures = [_draw_row(name, explanation) for name, explanation in rows]
    width = max(picture.width for picture in pictures)
    height = sum(picture.height + _WIDE_GAP for picture in pictures) + _LINE
    whole = Image.new("RGB", (width, height), "white")
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height + _WIDE_GAP
    ImageDraw.Draw(whole).text((0, top), _LEGEND, fill="black", font=_font())
    return whole


def _draw_row(name: str, explanation: Explanation) -> Image.Image:
    classes = explanation.classes
    attention = max(float(x.merged_attention.max()) for x in classes) or 1.0
    contribution = max(float(np.abs(x.merged_contributions).max()) for x in classes) or 1.0
    image = enlarge(explanation.pixels)
    pair = 2 * image.width + _GAP
    picture = Image.new(
        "RGB",
        (image.width + len(classes) * (pair + _WIDE_GAP), image.height + 2 * _LINE),
        "white",
    )

    def write(left: int, line: int, caption: str, width: int) -> None:
        strip = Image.new("RGB", (width, _LINE), "white")  # cuts off what is too long
        ImageDraw.Draw(strip).text((0, 0), caption, fill="black", font=_font())
        picture.paste(strip, (left, line * _LINE))

    write(0, 0, name, image.width)
    picture.paste(image, (0, 2 * _LINE))
    for position, evidence in enumerate(classes):
        left = image.width + _WIDE_GAP + position * (pair + _WIDE_GAP)
        write(left, 0, _caption(evidence), pair)
        maps: list[tuple[Kind, np.ndarray, float]] = [
            ("attention", evidence.merged_attention, attention),
            ("contribution", evidence.merged_contributions, contribution),
        ]
        for kind, values, largest in maps:
            write(left, 1, kind, image.width)
            picture.paste(overlay(explanation.pixels, values, largest, kind), (left, 2 * _LINE))
            left += image.width + _GAP
    return picture


def _caption(evidence: ClassEvidence) -> str:
    return f"{evidence.name}, {100 * evidence.probability:.1f} %, logit {evidence.logit:.1f}"


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_FONT)
