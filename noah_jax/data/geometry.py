"""Crops and resizes, bit-equal to torchvision's on PIL images, and the drawing of random crops.

Images are uint8 `[height, width, 3]`; sizes are `(height, width)` in pixels. Functions named
`draw_*` make random choices with the generator that is passed in; the others are pure.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from noah_jax.data.interpolation import INTERPOLATIONS, Resize
from noah_jax.data.resize import Box, resize
from noah_jax.errors import InputError

_TRAIN_INTERPOLATIONS = ("bilinear", "bicubic")
RANDOM_INTERPOLATION = "random"  # either of them for each image, with equal probability


def check_interpolation(key: str, interpolation: str, *, training: bool = False) -> None:
    """Checks the name of an interpolation.

    Args:
      key: Configuration key of the value, for the message.
      interpolation: The name.
      training: Whether it is for training, which has fewer of them, and "random".

    Raises:
      InputError: If the name is unknown.
    """
    known = (*_TRAIN_INTERPOLATIONS, RANDOM_INTERPOLATION) if training else INTERPOLATIONS
    if interpolation not in known:
        raise InputError(f"{key} must be one of {', '.join(known)}, got {interpolation!r}")


def check_range(key: str, bounds: tuple[float, float]) -> None:
    """Checks that a value is a pair of positive numbers in ascending order.

    Args:
      key: Configuration key of the value, for the message.
      bounds: The value.

    Raises:
      InputError: If it is not.
    """
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] < math.inf:
        raise InputError(f"{key} must be (lowest, highest) with 0 < lowest, got {tuple(bounds)}")


def draw_interpolation(interpolation: str, random: np.random.Generator) -> str:
    """Draws an interpolation for "random"; returns other names as they are."""
    if interpolation != RANDOM_INTERPOLATION:
        return interpolation
    return _TRAIN_INTERPOLATIONS[random.integers(len(_TRAIN_INTERPOLATIONS))]


def draw_crop(
    image_size: tuple[int, int],
    random: np.random.Generator,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Draws a box of random area, aspect ratio and position (Szegedy et al., 2015).

    The draws are those of torchvision's RandomResizedCrop, in its order.

    Args:
      image_size: `(width, height)` of the image in pixels.
      random: Generator of the random choices.
      area: Range of the box's fraction of the image's area, drawn uniformly.
      ratio: Range of the box's width over its height, drawn log-uniformly.
    """
    width, height = image_size
    # `random.uniform` computes the same in four times the time.
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        target = width * height * (area[0] + (area[1] - area[0]) * random.random())
        aspect = math.exp(low + (high - low) * random.random())
        w = round(math.sqrt(target * aspect))
        h = round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(random.integers(0, height - h + 1))
            left = int(random.integers(0, width - w + 1))
            return left, top, left + w, top + h
    # None of ten draws fitted: take the largest centred box within the range of ratios, at
    # least one pixel wide and high.
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
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Cuts out a box, resizes it and flips it left to right if asked.

    Args:
      pixels: uint8 `[height, width, 3]`; nothing outside the box is read.
      box: The box to cut out.
      size: `(height, width)` of the result in pixels.
      interpolation: "bilinear" or "bicubic".
      flip: Whether to flip the result.
      out: Array to write the result to: contiguous uint8 `[*size, 3]`.
    """
    return resize(pixels, size, interpolation, box=box, flip=flip, out=out)


def draw_offset(pad: int, random: np.random.Generator) -> tuple[int, int]:
    """Draws a shift `(x, y)` of at most `pad` pixels in each direction."""
    return int(random.integers(-pad, pad + 1)), int(random.integers(-pad, pad + 1))


def shifted_crop(pixels: np.ndarray, size: tuple[int, int], offset: tuple[int, int]) -> np.ndarray:
    """Cuts out a crop that is `offset` pixels `(x, y)` off the centre; zeros beyond the image."""
    top, left = crop_corner(pixels.shape, size, offset)
    return _crop(pixels, left, top, size)


def crop_corner(
    whole: Sequence[int], size: tuple[int, int], offset: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Returns top and left of a crop in an image; negative where it begins beyond the image.

    Args:
      whole: Height and width of the image in pixels; more is ignored.
      size: `(height, width)` of the crop.
      offset: Distance of a shifted crop from the centre, `(x, y)`; `None` for the centre itself.
    """
    if offset is None:
        top, left = (_margin(have, want) for have, want in zip(whole, size, strict=False))
        return top, left
    top, left = ((have - want) // 2 for have, want in zip(whole, size, strict=False))
    return top + offset[1], left + offset[0]


def flip(pixels: np.ndarray) -> np.ndarray:
    """Flips an image left to right."""
    return np.ascontiguousarray(pixels[:, ::-1])


def resize_shorter(pixels: np.ndarray, side: int, interpolation: str) -> np.ndarray:
    """Resizes the shorter side to `side` pixels, keeping the aspect, rounded as in torchvision."""
    h, w = pixels.shape[:2]
    if min(w, h) == side:
        return pixels
    return _resize_whole(pixels, _shorter_size(h, w, side), interpolation)


def center_crop(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cuts out the centre of an image, as torchvision does; zeros where the image is smaller."""
    top, left = crop_corner(pixels.shape, size)
    return _crop(pixels, left, top, size)


def fit(pixels: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Resizes an image so that it just covers `size`."""
    h, w = pixels.shape[:2]
    covering = covering_size(h, w, size)
    if covering == (h, w):
        return pixels
    return _resize_whole(pixels, covering, interpolation)


def squash(pixels: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Resizes the whole image to `size`, whatever its aspect."""
    return pixels if pixels.shape[:2] == size else _resize_whole(pixels, size, interpolation)


def _resize_whole(pixels: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Resizes an image by any of `INTERPOLATIONS`."""
    if interpolation in _TRAIN_INTERPOLATIONS:
        return resize(pixels, size, interpolation)
    if interpolation == "nearest":
        rows, columns = (_nearest(*sides) for sides in zip(pixels.shape, size, strict=False))
        return pixels[rows[:, None], columns]
    name = "NEAREST" if interpolation == "nearest-exact" else interpolation.upper()
    image = Image.fromarray(pixels).resize(size[::-1], Image.Resampling[name])
    return np.asarray(image)


def _nearest(source: int, target: int) -> np.ndarray:
    """Returns the source pixel of each target pixel, computed in float32 as PyTorch does it."""
    scale = np.float32(source) / np.float32(target)
    return np.minimum((np.arange(target, dtype=np.float32) * scale).astype(int), source - 1)


def evaluation_crop(
    image_size: tuple[int, int], size: tuple[int, int], resize: Resize
) -> tuple[float, float, float, float]:
    """Returns which part of an image the evaluation transform keeps.

    Args:
      image_size: `(height, width)` of the image in pixels.
      size: `(height, width)` of the transform's result, see `transforms.make_eval_transform`.
      resize: Length of the shorter side before the crop; `None` just covers `size`, and "squash"
        keeps everything.

    Returns:
      Left, top, right and bottom as fractions of the image's width and height; below 0 or above 1
      where the crop reaches beyond the image and is padded.
    """
    if isinstance(resize, str):
        return 0.0, 0.0, 1.0, 1.0
    if resize is None:
        whole = covering_size(*image_size, size)
    else:
        whole = _shorter_size(*image_size, resize)
    top, left = crop_corner(whole, size)
    height, width = whole
    return left / width, top / height, (left + size[1]) / width, (top + size[0]) / height


def _shorter_size(h: int, w: int, side: int) -> tuple[int, int]:
    return (int(side * h / w), side) if w <= h else (side, int(side * w / h))


def covering_size(h: int, w: int, size: tuple[int, int]) -> tuple[int, int]:
    """Returns the height and width at which an image of `h` and `w` pixels just covers `size`."""
    scale = max(size[0] / h, size[1] / w)
    return max(size[0], round(h * scale)), max(size[1], round(w * scale))


def _crop(pixels: np.ndarray, left: int, top: int, size: tuple[int, int]) -> np.ndarray:
    """Cuts out a box, with zeros where it reaches beyond the image."""
    out = np.zeros((*size, pixels.shape[2]), pixels.dtype)
    inside = pixels[max(top, 0) : top + size[0], max(left, 0) : left + size[1]]
    y, x = max(-top, 0), max(-left, 0)
    out[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return out


def _margin(have: int, want: int) -> int:
    """Returns the pixels to cut before a centred crop; a negative number is padding."""
    # torchvision rounds half to even where it cuts, and down where it pads.
    return round((have - want) / 2) if have >= want else -((want - have) // 2)
