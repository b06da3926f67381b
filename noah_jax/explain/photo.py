"""Draws the whole image with a frame round the part that the model sees."""

from collections.abc import Sequence

import numpy as np

from noah_jax.explain.explanation import PHOTO_SIDE, Crop
from noah_jax.pictures.layout import fit_into

_LINE = 2  # width of the frame in pixels
_DIMMED = 0.45  # brightness outside the frame
_WHOLE = 0.01  # a crop that leaves out no more of a side than this has no frame


def whole_photo(pixels: np.ndarray) -> np.ndarray:
    """Returns an image, uint8 `[height, width, 3]`, made smaller if it is large."""
    return pixels if max(pixels.shape) <= PHOTO_SIDE else fit_into(pixels, PHOTO_SIDE)


def leaves_out(crop: Crop) -> bool:
    """Whether the model sees less than the whole image."""
    left, top, right, bottom = crop
    return max(left, top, 1 - right, 1 - bottom) > _WHOLE


def framed(photo: np.ndarray, crop: Crop, side: int) -> np.ndarray:
    """Draws a photograph and, if the model does not see all of it, a frame round what it sees.

    Args:
      photo: uint8 `[height, width, 3]`.
      crop: The part that the model sees.
      side: The longer side of the result in pixels.

    Returns:
      uint8 `[height, width, 3]`.
    """
    picture = fit_into(photo, side)
    if not leaves_out(crop):
        return picture
    height, width = picture.shape[:2]
    left, right = (round(min(max(x, 0), 1) * width) for x in crop[::2])
    top, bottom = (round(min(max(y, 0), 1) * height) for y in crop[1::2])
    dimmed = (picture * _DIMMED).astype(np.uint8)
    dimmed[top:bottom, left:right] = picture[top:bottom, left:right]
    # A white line with a dark one inside it shows on every photograph.
    for inset, colour in ((0, 255), (_LINE, 32)):
        box = dimmed[top + inset : bottom - inset, left + inset : right - inset]
        for edge in (box[:_LINE], box[-_LINE:], box[:, :_LINE], box[:, -_LINE:]):
            edge[:] = colour
    return dimmed


def describe_crops(crops: Sequence[Crop]) -> str:
    """Says how much of the image each of the models sees; nothing if they see all of it."""
    seen = dict.fromkeys(_percent_seen(crop) for crop in crops if leaves_out(crop))
    if not seen:
        return ""
    if len(seen) == 1:
        return f"the model sees the part in the frame, {next(iter(seen))}"
    return f"the models see the parts in the frames, {' and '.join(seen)}"


def _percent_seen(crop: Crop) -> str:
    left, top, right, bottom = (min(max(x, 0), 1) for x in crop)
    return f"{100 * (right - left) * (bottom - top):.0f}\u00a0%"
