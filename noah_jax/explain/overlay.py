"""Draws attention and contributions over images."""

import dataclasses
import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from noah_jax.explain.explanation import ClassEvidence, Explanation

Kind = Literal["attention", "contribution"]

_POSITIVE, _NEGATIVE, _ATTENTION = (200, 30, 30), (30, 70, 210), (250, 180, 0)
_STRONGEST = 0.85  # opacity of the largest value
_SIDE = 224  # small images are enlarged to at least this many pixels
_GAP, _LINE = 6, 16


@dataclasses.dataclass(frozen=True)
class Scale:
    """The values that are drawn in the strongest colours.

    Attributes:
      contribution: The largest contribution by absolute value.
      attention: The largest attention.
    """

    contribution: float
    attention: float


def common_scale(evidence: Sequence[ClassEvidence]) -> Scale:
    """Returns one scale for all maps of several models, both merged and of single blocks."""
    contributions = [x.merged_contributions for x in evidence] + [x.contributions for x in evidence]
    return Scale(
        max(float(np.abs(x).max()) for x in contributions) or 1.0,
        max(float(x.attention.max()) for x in evidence) or 1.0,
    )


def overlay(pixels: np.ndarray, values: np.ndarray, largest: float, kind: Kind) -> Image.Image:
    """Draws a map over an image.

    Args:
      pixels: uint8 `[height, width, 3]`.
      values: The map, `[rows, columns]`.
      largest: The value that is drawn in the strongest colour.
      kind: What the map shows. Contributions are red where they add to the logit and blue where
        they subtract from it.
    """
    image = enlarge(pixels)
    opacity = np.clip(np.abs(values) / largest, 0, 1) * _STRONGEST
    mask = Image.fromarray((255 * opacity).round().astype(np.uint8))
    if kind == "attention":
        colours = np.broadcast_to(np.array(_ATTENTION, np.uint8), (*values.shape, 3))
    else:
        colours = np.where((values < 0)[..., None], _NEGATIVE, _POSITIVE).astype(np.uint8)
    layers = (Image.fromarray(np.ascontiguousarray(colours)), mask)
    colour, mask = (x.resize(image.size, Image.Resampling.NEAREST) for x in layers)
    return Image.composite(colour, image, mask)


def enlarge(pixels: np.ndarray) -> Image.Image:
    """Enlarges an image by a whole factor, so that its longer side has at least `_SIDE` pixels."""
    image = Image.fromarray(pixels)
    factor = -(-_SIDE // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def draw_maps(explanation: Explanation, evidence: ClassEvidence, scale: Scale) -> Image.Image:
    """Draws the image and the merged maps and, below them, the maps of every block.

    Args:
      explanation: The image.
      evidence: The class; one of the explanation's.
      scale: The colour scale.
    """

    def over(values: np.ndarray, kind: Kind) -> Image.Image:
        largest = scale.attention if kind == "attention" else scale.contribution
        return overlay(explanation.pixels, values, largest, kind)

    def of_blocks(values: np.ndarray, kind: Kind) -> list[tuple[str, Image.Image]]:
        return [(f"block {i + 1}: {kind}", over(block, kind)) for i, block in enumerate(values)]

    rows = [
        [
            (f"{evidence.name}: logit {evidence.logit:.4f}", enlarge(explanation.pixels)),
            ("contributions", over(evidence.merged_contributions, "contribution")),
            ("attention", over(evidence.merged_attention, "attention")),
        ],
        of_blocks(evidence.contributions, "contribution"),
        of_blocks(evidence.attention, "attention"),
    ]
    width, height = rows[0][0][1].size
    picture = Image.new(
        "RGB",
        (max(map(len, rows)) * (width + _GAP) - _GAP, len(rows) * (height + _LINE + _GAP)),
        "white",
    )
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    for y, row in enumerate(rows):
        for x, (caption, image) in enumerate(row):
            left, top = x * (width + _GAP), y * (height + _LINE + _GAP)
            draw.text((left, top), caption, fill="black", font=font)
            picture.paste(image, (left, top + _LINE))
    return picture


def encode_png(picture: Image.Image, *, optimize: bool = False) -> bytes:
    """Encodes a picture as PNG; `optimize` takes longer and gives a smaller file."""
    png = io.BytesIO()
    picture.save(png, "PNG", optimize=optimize)
    return png.getvalue()
