"""Image transforms on the host: RGB image in, uint8 `[height, width, 3]` out.

Pillow throughout, so that results are what torchvision computes on PIL images. Random
choices come from the generator that is passed in, never from global state.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

TrainTransform = Callable[[Image.Image, np.random.Generator], np.ndarray]
EvalTransform = Callable[[Image.Image], np.ndarray]

INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def random_resized_crop(
    image: Image.Image,
    size: tuple[int, int],
    random: np.random.Generator,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: str = "bilinear",
) -> Image.Image:
    """A random crop of random area and aspect, resized (Szegedy et al., 2015).

    Args:
      image: RGB image.
      size: `(height, width)` of the result in pixels.
      random: source of the choices.
      area: range of the crop's share of the image's area.
      ratio: range of the crop's width over its height, drawn log-uniformly.
      interpolation: "bilinear" or "bicubic".
    """
    box = _random_box(image.width, image.height, random, area, ratio)
    return image.resize(size[::-1], INTERPOLATIONS[interpolation], box=box)


def _random_box(width, height, random, area, ratio) -> tuple[int, int, int, int]:
    for _ in range(10):
        target = width * height * random.uniform(*area)
        aspect = math.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w = round(math.sqrt(target * aspect))
        h = round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int(random.integers(0, width - w + 1))
            top = int(random.integers(0, height - h + 1))
            return left, top, left + w, top + h
    # No try fitted: the largest centred crop within the ratio's range.
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


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
    left = round((image.width - width) / 2)
    top = round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def pad_crop(
    image: Image.Image, size: tuple[int, int], pad: int, random: np.random.Generator
) -> Image.Image:
    """A random crop out of the centred image with `pad` zero pixels on every side."""
    height, width = size
    left = (image.width - width) // 2 + int(random.integers(-pad, pad + 1))
    top = (image.height - height) // 2 + int(random.integers(-pad, pad + 1))
    return image.crop((left, top, left + width, top + height))


def make_train_transform(
    crop: str,
    size: tuple[int, int],
    *,
    pad: int = 4,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: str = "bilinear",
    flip: bool = True,
) -> TrainTransform:
    """The training transform: crop, then a horizontal flip half the time.

    Args:
      crop: "random_resized" (`area`, `ratio`, `interpolation`), "pad" (random crop after
        padding by `pad`; for small images) or "none".
      size: `(height, width)` in pixels.
      pad: pixels on every side for crop="pad".
      area: see `random_resized_crop`.
      ratio: see `random_resized_crop`.
      interpolation: "bilinear" or "bicubic".
      flip: whether to flip.

    Raises:
      ValueError: on an unknown crop or interpolation.
    """
    _check_interpolation(interpolation)
    if crop not in ("random_resized", "pad", "none"):
        raise ValueError(f"train crop must be random_resized, pad or none, got {crop!r}")

    def transform(image: Image.Image, random: np.random.Generator) -> np.ndarray:
        if crop == "random_resized":
            image = random_resized_crop(
                image, size, random, area=area, ratio=ratio, interpolation=interpolation
            )
        elif crop == "pad":
            image = pad_crop(_fit(image, size, interpolation), size, pad, random)
        else:
            image = center_crop(_fit(image, size, interpolation), size)
        out = np.asarray(image)
        if flip and random.random() < 0.5:
            out = out[:, ::-1]
        return out

    return transform


def make_eval_transform(
    size: tuple[int, int], *, resize: int | None, interpolation: str = "bilinear"
) -> EvalTransform:
    """The evaluation transform: resize the shorter side, crop the centre.

    Args:
      size: `(height, width)` of the result in pixels.
      resize: pixels of the shorter side before the crop; `None` resizes only images smaller
        or larger than `size`, so that the crop cuts as little as possible.
      interpolation: "bilinear" or "bicubic".

    Raises:
      ValueError: on an unknown interpolation.
    """
    _check_interpolation(interpolation)

    def transform(image: Image.Image) -> np.ndarray:
        if resize is None:
            image = _fit(image, size, interpolation)
        else:
            image = resize_shorter(image, resize, interpolation)
        return np.asarray(center_crop(image, size))

    return transform


def _fit(image: Image.Image, size: tuple[int, int], interpolation: str) -> Image.Image:
    """Resizes so that the image just covers `(height, width)`; as it is if it does."""
    scale = max(size[0] / image.height, size[1] / image.width)
    if scale == 1:
        return image
    covering = max(size[1], round(image.width * scale)), max(size[0], round(image.height * scale))
    return image.resize(covering, INTERPOLATIONS[interpolation])


def _check_interpolation(interpolation: str) -> None:
    if interpolation not in INTERPOLATIONS:
        raise ValueError(
            f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {interpolation!r}"
        )
