"""Crops and resizes of PIL images, bit-equal to torchvision's, and the drawing of crops.

Functions named `draw_*` choose with the generator passed in; the others are pure.
"""

import math

import numpy as np
from PIL import Image

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels

INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
RANDOM_INTERPOLATION = "random"  # one of the above for every image, evenly


def check_interpolation(interpolation: str, *, random: bool = False) -> None:
    """Refuses unknown names; "random" is known where `random` is true.

    Raises:
      ValueError: if so.
    """
    known = [*INTERPOLATIONS, RANDOM_INTERPOLATION] if random else list(INTERPOLATIONS)
    if interpolation not in known:
        raise ValueError(f"interpolation must be one of {', '.join(known)}, got {interpolation!r}")


def check_range(name: str, bounds: tuple[float, float]) -> None:
    """Refuses all but two positive numbers in ascending order.

    Raises:
      ValueError: if so.
    """
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] < math.inf:
        raise ValueError(f"{name} must be (lowest, highest) with 0 < lowest, got {tuple(bounds)}")


def draw_interpolation(interpolation: str, random: np.random.Generator) -> str:
    """What "random" stands for this time; other names are what they are."""
    if interpolation != RANDOM_INTERPOLATION:
        return interpolation
    return list(INTERPOLATIONS)[random.integers(len(INTERPOLATIONS))]


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
    pixels: np.ndarray, box: Box, size: tuple[int, int], interpolation: str
) -> Image.Image:
    """The box of an image, resized.

    Args:
      pixels: uint8 `[height, width, 3]`.
      box: what to cut out.
      size: `(height, width)` of the result in pixels.
      interpolation: "bilinear" or "bicubic".
    """
    # Not `resize(box=box)`: there the filter reads pixels beyond the box, which changes the
    # result along its edges.
    left, top, right, bottom = box
    image = Image.fromarray(pixels[top:bottom, left:right])
    return image.resize(size[::-1], INTERPOLATIONS[interpolation])


def draw_offset(pad: int, random: np.random.Generator) -> tuple[int, int]:
    """`(x, y)` of a shift by at most `pad` pixels each way."""
    return int(random.integers(-pad, pad + 1)), int(random.integers(-pad, pad + 1))


def shifted_crop(image: Image.Image, size: tuple[int, int], offset: tuple[int, int]) -> Image.Image:
    """A crop of `(height, width)` pixels, `offset` from the centre; zeros beyond the image."""
    height, width = size
    left = (image.width - width) // 2 + offset[0]
    top = (image.height - height) // 2 + offset[1]
    return image.crop((left, top, left + width, top + height))


def flip(image: Image.Image) -> Image.Image:
    """Left and right exchanged."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def resize_shorter(image: Image.Image, pixels: int, interpolation: str) -> Image.Image:
    """Resizes the shorter side to `pixels`, keeping the aspect, as torchvision rounds."""
    w, h = image.size
    if min(w, h) == pixels:
        return image
    size = (pixels, int(pixels * h / w)) if w <= h else (int(pixels * w / h), pixels)
    return image.resize(size, INTERPOLATIONS[interpolation])


def center_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The centre `(height, width)` of an image, zeros where it is smaller (torchvision)."""
    height, width = size
    if image.size == (width, height):
        return image
    left, top = _margin(image.width, width), _margin(image.height, height)
    return image.crop((left, top, left + width, top + height))


def fit(image: Image.Image, size: tuple[int, int], interpolation: str) -> Image.Image:
    """Resizes so that the image just covers `(height, width)`; as it is if it does."""
    scale = max(size[0] / image.height, size[1] / image.width)
    if scale == 1:
        return image
    covering = max(size[1], round(image.width * scale)), max(size[0], round(image.height * scale))
    return image.resize(covering, INTERPOLATIONS[interpolation])


def _margin(have: int, want: int) -> int:
    """Pixels to leave out before a centred crop; negative are pixels to add."""
    # torchvision rounds half to even where it cuts, and down where it pads.
    return round((have - want) / 2) if have >= want else -((want - have) // 2)
