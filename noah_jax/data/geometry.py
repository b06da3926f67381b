"""Crops and resizes of images, bit-equal to torchvision's on PIL images, and crops' drawing.

Images are uint8 `[height, width, 3]`, sizes `(height, width)` in pixels.

Functions named `draw_*` choose with the generator passed in; the others are pure.
"""

import math

import numpy as np

from noah_jax.data.resize import Box, resize
from noah_jax.errors import InputError

INTERPOLATIONS = ("bilinear", "bicubic")
RANDOM_INTERPOLATION = "random"  # one of the above for every image, evenly


def check_interpolation(interpolation: str, *, random: bool = False) -> None:
    """Refuses unknown names; "random" is known where `random` is true.

    Raises:
      ValueError: if so.
    """
    known = [*INTERPOLATIONS, RANDOM_INTERPOLATION] if random else INTERPOLATIONS
    if interpolation not in known:
        raise InputError(f"interpolation must be one of {', '.join(known)}, got {interpolation!r}")


def check_range(name: str, bounds: tuple[float, float]) -> None:
    """Refuses all but two positive numbers in ascending order.

    Raises:
      ValueError: if so.
    """
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] < math.inf:
        raise InputError(f"{name} must be (lowest, highest) with 0 < lowest, got {tuple(bounds)}")


def draw_interpolation(interpolation: str, random: np.random.Generator) -> str:
    """What "random" stands for this time; other names are what they are."""
    if interpolation != RANDOM_INTERPOLATION:
        return interpolation
    return INTERPOLATIONS[random.integers(len(INTERPOLATIONS))]


def draw_crop(
    image_size: tuple[int, int],
    random: np.random.Generator,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """A box of random area, aspect and place (Szegedy et al., 2015), as torchvision draws it.

    Args:
      image_size: `(width, height)` of the image in pixels.
      random: source of the choices.
      area: range of the box's share of the image's area, drawn uniformly.
      ratio: range of the box's width over its height, drawn log-uniformly.
    """
    width, height = image_size
    for _ in range(10):
        target = width * height * random.uniform(*area)
        aspect = math.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w = round(math.sqrt(target * aspect))
        h = round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(random.integers(0, height - h + 1))
            left = int(random.integers(0, width - w + 1))
            return left, top, left + w, top + h
    # No try fitted: the largest centred box within the ratio's range, a pixel at least.
    w = max(1, min(width, round(height * ratio[1])))
    h = max(1, min(height, round(width / ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def resized_crop(
    pixels: np.ndarray,
    box: Box,
    size: tuple[int, int],
    interpolation: str,
    *,
    flip: bool = False,
) -> np.ndarray:
    """The box of an image, resized, then flipped if asked; nothing beyond the box is read."""
    return resize(pixels, size, interpolation, box=box, flip=flip)


def draw_offset(pad: int, random: np.random.Generator) -> tuple[int, int]:
    """`(x, y)` of a shift by at most `pad` pixels each way."""
    return int(random.integers(-pad, pad + 1)), int(random.integers(-pad, pad + 1))


def shifted_crop(pixels: np.ndarray, size: tuple[int, int], offset: tuple[int, int]) -> np.ndarray:
    """A crop of `size`, `offset` pixels `(x, y)` from the centre; zeros beyond the image."""
    top, left = ((have - want) // 2 for have, want in zip(pixels.shape, size, strict=False))
    return _crop(pixels, left + offset[0], top + offset[1], size)


def flip(pixels: np.ndarray) -> np.ndarray:
    """Left and right exchanged."""
    return np.ascontiguousarray(pixels[:, ::-1])


def resize_shorter(pixels: np.ndarray, side: int, interpolation: str) -> np.ndarray:
    """Resizes the shorter side to `side` pixels, keeping the aspect, as torchvision rounds."""
    h, w = pixels.shape[:2]
    if min(w, h) == side:
        return pixels
    size = (int(side * h / w), side) if w <= h else (side, int(side * w / h))
    return resize(pixels, size, interpolation)


def center_crop(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The centre of an image, zeros where it is smaller (torchvision)."""
    top, left = (_margin(have, want) for have, want in zip(pixels.shape, size, strict=False))
    return _crop(pixels, left, top, size)


def fit(pixels: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Resizes so that the image just covers `size`; as it is if it does."""
    h, w = pixels.shape[:2]
    scale = max(size[0] / h, size[1] / w)
    if scale == 1:
        return pixels
    covering = max(size[0], round(h * scale)), max(size[1], round(w * scale))
    return resize(pixels, covering, interpolation)


def _crop(pixels: np.ndarray, left: int, top: int, size: tuple[int, int]) -> np.ndarray:
    """What lies in a box, zeros where it reaches beyond the image."""
    out = np.zeros((*size, pixels.shape[2]), pixels.dtype)
    inside = pixels[max(top, 0) : top + size[0], max(left, 0) : left + size[1]]
    y, x = max(-top, 0), max(-left, 0)
    out[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return out


def _margin(have: int, want: int) -> int:
    """Pixels to leave out before a centred crop; negative are pixels to add."""
    # torchvision rounds half to even where it cuts, and down where it pads.
    return round((have - want) / 2) if have >= want else -((want - have) // 2)
