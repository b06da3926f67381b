"""Transforms of images on the host: uint8 `[height, width, 3]` in and out.

The results are those of torchvision and timm on PIL images. `TrainTransform.approximate` takes
faster crops by OpenCV instead. Random choices come from the generator that is passed in, never
from global state.
"""

import dataclasses
import importlib.util
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from noah_jax.data import geometry
from noah_jax.data.color import NUM_ADJUSTMENTS, Adjustment, color_jitter, draw_color_jitter
from noah_jax.data.device_draws import COLUMNS, encode_draws
from noah_jax.data.interpolation import SQUASH, Resize
from noah_jax.data.randaugment import Fill, Operation, RandAugment, rand_augment
from noah_jax.data.resize import Box
from noah_jax.errors import InputError

EvalTransform = Callable[[np.ndarray], np.ndarray]

_CROPS = ("random_resized", "pad", "none")


@dataclasses.dataclass(frozen=True)
class TrainChoices:
    """The random choices for one training image.

    Attributes:
      box: The box to cut out, for crop="random_resized".
      offset: Distance of the crop from the centre, `(x, y)` in pixels, for crop="pad".
      interpolation: "bilinear" or "bicubic".
      flip: Whether to flip the image left to right.
      adjustments: Adjustments of the colour jitter.
      operations: Operations of RandAugment.
    """

    box: Box | None
    offset: tuple[int, int] | None
    interpolation: str
    flip: bool
    adjustments: tuple[Adjustment, ...]
    operations: tuple[Operation, ...]

    def move_box(self, right: int, down: int) -> "TrainChoices":
        """Returns the choices for an image in which the box lies elsewhere, in pixels."""
        assert self.box is not None
        left, top, end, bottom = self.box
        box = (left + right, top + down, end + right, bottom + down)
        return dataclasses.replace(self, box=box)


class Transformed(NamedTuple):
    """A training image.

    Attributes:
      pixels: uint8 `[height, width, 3]`.
      draws: What is left to the device, see `TrainTransform.encode`; `None` if nothing is.
    """

    pixels: np.ndarray
    draws: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """The training transform: crop, flip half of the time, colour jitter or RandAugment.

    Attributes:
      crop: "random_resized" (by `area` and `ratio`), "pad" (a random crop after padding by
        `pad`, for small images) or "none".
      size: `(height, width)` of the result in pixels.
      squash: Whether the other crops resize the whole image to `size`, whatever its aspect;
        otherwise the image just covers `size`.
      pad: Padding on every side in pixels, for crop="pad".
      area: See `geometry.draw_crop`.
      ratio: See `geometry.draw_crop`.
      interpolation: "bilinear", "bicubic", or "random", which draws one for each image.
      flip: Whether to flip half of the images.
      color_jitter: Strength of the random brightness, contrast and saturation; 0 for none.
      rand_augment: Distribution of RandAugment's operations; `None` for none.
      fill: Colour of the pixels that RandAugment takes from beyond the image.
      on_device: Whether the colour jitter and RandAugment are left to the device, which gets what
        was drawn; see `noah_jax.data.device_draws`.
      approximate: Whether to decode approximately, and to crop and flip with OpenCV; only for
        crop="random_resized".

    Raises:
      InputError: If the crop or the interpolation is unknown, a value is out of its range,
        colour jitter comes with RandAugment, which replaces it, or `approximate` comes with
        another crop or without OpenCV.
    """

    crop: str
    size: tuple[int, int]
    squash: bool = False
    pad: int = 4
    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"
    flip: bool = True
    color_jitter: float = 0.0
    rand_augment: RandAugment | None = None
    fill: Fill = (0, 0, 0)
    on_device: bool = False
    approximate: bool = False

    def __post_init__(self) -> None:
        geometry.check_interpolation("data.interpolation", self.interpolation, training=True)
        if self.crop not in _CROPS:
            raise InputError(f"data.crop must be random_resized, pad or none, got {self.crop!r}")
        if self.pad < 0:
            raise InputError(f"data.pad must be 0 pixels or more, got {self.pad}")
        geometry.check_range("data.area", self.area)
        if self.area[1] > 1:
            raise InputError(
                f"data.area must end at 1 at most, the whole image, got {self.area[1]}"
            )
        geometry.check_range("data.ratio", self.ratio)
        if not 0 <= self.color_jitter < math.inf:
            raise InputError(f"data.color_jitter must be 0 or more, got {self.color_jitter}")
        if self.color_jitter and self.rand_augment:
            raise InputError(
                "data.rand_augment replaces color_jitter: set data.rand_augment.num_ops or"
                " data.color_jitter to 0"
            )
        if self.approximate:
            if self.crop != "random_resized":
                raise InputError(
                    f"data.approximate_decode needs crop=random_resized, got data.crop={self.crop}"
                )
            if importlib.util.find_spec("cv2") is None:
                raise InputError(
                    "data.approximate_decode needs OpenCV: pip install 'noah-jax[approximate]'"
                )

    def draw(self, image_size: tuple[int, int], random: np.random.Generator) -> TrainChoices:
        """Draws the random choices for an image of `(width, height)` pixels."""
        box = offset = None
        if self.crop == "random_resized":
            box = geometry.draw_crop(image_size, random, area=self.area, ratio=self.ratio)
        elif self.crop == "pad":
            offset = geometry.draw_offset(self.pad, random)
        # The order of the draws decides which images a seed gives.
        return TrainChoices(
            box=box,
            offset=offset,
            interpolation=geometry.draw_interpolation(self.interpolation, random),
            flip=self.flip and random.random() < 0.5,
            adjustments=draw_color_jitter(self.color_jitter, random) if self.color_jitter else (),
            operations=(
                self.rand_augment.draw(random, self.interpolation) if self.rand_augment else ()
            ),
        )

    def apply(
        self, pixels: np.ndarray, choices: TrainChoices, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns the transformed image.

        Args:
          pixels: uint8 `[height, width, 3]`.
          choices: The random choices.
          out: Array to write the result to: contiguous uint8 `[*size, 3]`.
        """
        if choices.box is not None:
            pixels = self._resized_crop(pixels, choices.box, choices, out)
        else:
            resize = geometry.squash if self.squash else geometry.fit
            pixels = resize(pixels, self.size, choices.interpolation)
            if choices.offset is not None:
                pixels = geometry.shifted_crop(pixels, self.size, choices.offset)
            else:
                pixels = geometry.center_crop(pixels, self.size)
            if choices.flip:
                pixels = geometry.flip(pixels)
        if not self.on_device and (choices.adjustments or choices.operations):
            image = color_jitter(Image.fromarray(pixels), choices.adjustments)
            pixels = np.asarray(rand_augment(image, choices.operations, self.fill))
        if out is None or pixels is out:
            return pixels
        out[:] = pixels
        return out

    @property
    def draw_shape(self) -> tuple[int, int] | None:
        """The shape of what `encode` returns; `None` if nothing is left to the device."""
        rows = self.rand_augment.num_ops if self.rand_augment else NUM_ADJUSTMENTS
        left = self.on_device and (self.rand_augment or self.color_jitter)
        return (rows, COLUMNS) if left else None

    def encode(self, choices: TrainChoices) -> np.ndarray | None:
        """Returns what is left to the device as float32 `[rows, columns]`, if anything is."""
        if not self.on_device or self.draw_shape is None:
            return None
        rows, _ = self.draw_shape
        return encode_draws(choices.adjustments, choices.operations, rows=rows, size=self.size)

    def _resized_crop(
        self, pixels: np.ndarray, box: Box, choices: TrainChoices, out: np.ndarray | None
    ) -> np.ndarray:
        if self.approximate:
            from noah_jax.data import approximate  # needs OpenCV, which is an extra

            crop = approximate.resized_crop
        else:
            crop = geometry.resized_crop
        return crop(pixels, box, self.size, choices.interpolation, flip=choices.flip, out=out)

    def __call__(self, pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Draws the random choices and applies those that are the host's."""
        return self.transform(pixels, random).pixels

    def transform(
        self, pixels: np.ndarray, random: np.random.Generator, out: np.ndarray | None = None
    ) -> Transformed:
        """Draws the random choices, applies those that are the host's and encodes the others.

        Args:
          pixels: uint8 `[height, width, 3]`.
          random: Generator of the random choices.
          out: Array to write the image to: contiguous uint8 `[*size, 3]`.
        """
        choices = self.draw(pixels.shape[1::-1], random)
        return Transformed(self.apply(pixels, choices, out), self.encode(choices))


def make_eval_transform(
    size: tuple[int, int], *, resize: Resize, interpolation: str = "bilinear"
) -> EvalTransform:
    """Makes the evaluation transform: resize the shorter side, crop the centre.

    Args:
      size: `(height, width)` of the result in pixels.
      resize: Length of the shorter side before the crop in pixels. `None` resizes the image
        so that it just covers `size`, and the crop cuts as little as possible. "squash" resizes
        the whole image to `size`, whatever its aspect.
      interpolation: One of `noah_jax.data.interpolation.INTERPOLATIONS`.

    Raises:
      InputError: If the interpolation is unknown, or `resize` is less than a pixel.
    """
    geometry.check_interpolation("data.eval_interpolation", interpolation)
    if isinstance(resize, int) and resize < 1:
        raise InputError(f"data.eval_resize must be at least 1 pixel, got {resize}")

    def transform(pixels: np.ndarray) -> np.ndarray:
        if resize == SQUASH:
            return geometry.squash(pixels, size, interpolation)
        if resize is None:
            pixels = geometry.fit(pixels, size, interpolation)
        else:
            pixels = geometry.resize_shorter(pixels, resize, interpolation)
        return geometry.center_crop(pixels, size)

    return transform
