"""Maps drawn over images."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from noah_jax.explain.explanation import ClassEvidence, Explanation

_POSITIVE, _NEGATIVE, _ATTENTION = (200, 30, 30), (30, 70, 210), (250, 180, 0)
_OPAQUE = 0.85  # of the strongest colour
_SIDE = 224  # pixels that a small image is enlarged to
_GAP, _LINE = 6, 16


@dataclasses.dataclass(frozen=True)
class Scale:
    """What the strongest colours stand for.

    Attributes:
      contribution: the largest one, positive or negative.
      attention: the largest one.
    """

    contribution: float
    attention: float


def common_scale(evidence: Sequence[ClassEvidence]) -> Scale:
    """One scale for all maps of several models, merged and of single blocks."""
    contributions = [x.merged_contributions for x in evidence] + [x.contributions for x in evidence]
    return Scale(
        max(float(np.abs(x).max()) for x in contributions) or 1.0,
        max(float(x.attention.max()) for x in evidence) or 1.0,
    )


def overlay(pixels: np.ndarray, values: np.ndarray, largest: float, kind: str) -> Image.Image:
    """An image with a map over it.

    Args:
      pixels: uint8 `[height, width, 3]`.
      values: `[rows, columns]`.
      largest: the value of the strongest colour.
      kind: "contribution" (red adds to the logit, blue takes from it) or "attention".
    """
    image = enlarged(pixels)
    share = np.clip(np.abs(values) / largest, 0, 1) * _OPAQUE
    alpha = Image.fromarray((255 * share).round().astype(np.uint8))
    if kind == "attention":
        colours = np.broadcast_to(np.array(_ATTENTION, np.uint8), (*values.shape, 3))
    else:
        colours = np.where((values < 0)[..., None], _NEGATIVE, _POSITIVE).astype(np.uint8)
    layers = (Image.fromarray(np.ascontiguousarray(colours)), alpha)
    colour, alpha = (x.resize(image.size, Image.Resampling.NEAREST) for x in layers)
    return Image.composite(colour, image, alpha)


def enlarged(pixels: np.ndarray) -> Image.Image:
    """The image, by a whole factor of at least `_SIDE` pixels on its longer side."""
    image = Image.fromarray(pixels)
    factor = -(-_SIDE // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def strip(explanation: Explanation, evidence: ClassEvidence, scale: Scale) -> Image.Image:
    """The image, the merged maps and, below, every block's contributions and attention."""

    def over(values, kind):
        largest = scale.attention if kind == "attention" else scale.contribution
        return overlay(explanation.pixels, values, largest, kind)

    rows = [
        [
            (f"{evidence.name}: logit {evidence.logit:.4f}", enlarged(explanation.pixels)),
            ("contributions", over(evidence.merged_contributions, "contribution")),
            ("attention", over(evidence.merged_attention, "attention")),
        ],
        *(
            [
                (f"block {block + 1}: {kind}", over(values[block], kind))
                for block in range(len(values))
            ]
            for kind, values in (
                ("contribution", evidence.contributions),
                ("attention", evidence.attention),
            )
        ),
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
