"""What the host makes of training images for DALI: encoded bytes, and what was drawn for them."""

import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from noah_jax.data import geometry
from noah_jax.data.corrupt import first_usable
from noah_jax.data.decoding import DecodedSource, decode
from noah_jax.data.jpeg import read_header
from noah_jax.data.sampler import Sampler
from noah_jax.data.source import Label
from noah_jax.data.transforms import TrainChoices, TrainTransform
from noah_jax.errors import CorruptImageError

_END_OF_JPEG = b"\xff\xd9"


class EncodedBatch(NamedTuple):
    """The rows of a batch, or some of them, before DALI has decoded them.

    Worker processes hand on its arrays in shared memory.

    Attributes:
      data: uint8 `[bytes]`, the encoded images one after the other, in one or several pieces.
      columns: What else is known of each row, by name:

        - `length`: int64 `[rows]`, the number of its bytes.
        - `corner`: int32 `[rows, 2]`, left and top of the box to cut out, in pixels.
        - `extent`: int32 `[rows, 2]`, the box's width and height.
        - `resized`: float32 `[rows, 2]`, the height and width that the box is resized to.
        - `window`: int32 `[rows, 2]`, top and left of what is kept of that, which may lie outside.
        - `flip`: int32 `[rows]`, 1 to flip the image left to right.
        - `bicubic`: int32 `[rows]`, 1 to interpolate bicubically.
        - `index`: int64 `[rows]`, the image's index in the source.
        - `label`: int32 `[rows]` or `[rows, num_classes]`.
        - `draws`: float32 `[rows, operations, columns]`, what the training step applies; absent
          if it applies nothing.
    """

    data: tuple[np.ndarray, ...]
    columns: dict[str, np.ndarray]

    def images(self) -> list[np.ndarray]:
        """Returns the encoded images, uint8 `[bytes]` each, without a copy."""
        lengths = iter(self.columns["length"].tolist())
        found: list[np.ndarray] = []
        for piece in self.data:
            start = 0
            while start < len(piece):
                end = start + next(lengths)
                found.append(piece[start:end])
                start = end
        return found

    def split(self, count: int) -> list["EncodedBatch"]:
        """Cuts the batch into so many equal parts, without a copy."""
        images = self.images()
        size = len(images) // count
        return [
            EncodedBatch(
                tuple(images[start : start + size]),
                {name: column[start : start + size] for name, column in self.columns.items()},
            )
            for start in range(0, len(images), size)
        ]

    def with_row(self, row: int, image: "EncodedBatch") -> "EncodedBatch":
        """Returns the batch with another image, a batch of one row, in one of its rows."""
        images = self.images()
        images[row] = image.data[0]
        columns = {name: column.copy() for name, column in self.columns.items()}
        for name, column in columns.items():
            column[row] = image.columns[name][0]
        return EncodedBatch(tuple(images), columns)


@dataclasses.dataclass(frozen=True)
class _Image:
    """A row of an `EncodedBatch`."""

    data: bytes
    corner: tuple[int, int]
    extent: tuple[int, int]
    resized: tuple[int, int]
    window: tuple[int, int]
    flip: bool
    bicubic: bool
    index: int
    label: Label
    draws: np.ndarray | None


_DTYPES = {
    **dict.fromkeys(("corner", "extent", "window", "flip", "bicubic", "label"), np.int32),
    "resized": np.float32,
    "index": np.int64,
}


def load(
    source: DecodedSource,
    transform: TrainTransform,
    sampler: Sampler,
    first_row: int,
    step: int,
    rows: Sequence[int],
    refused: Collection[int] = (),
) -> tuple[EncodedBatch, list[CorruptImageError]]:
    """Reads the images of some rows of a batch and draws their random choices.

    Args:
      source: The training images.
      transform: The training transform.
      sampler: Decides which image stands where.
      first_row: The batch's row that this host's rows begin with.
      step: The step, 0 first.
      rows: The rows, counted from `first_row`.
      refused: Indices of images that DALI cannot decode, although their headers look fine.

    Returns:
      The images, and the errors of those that could not be used and were replaced.
    """
    errors: list[CorruptImageError] = []

    def use(row: int, offset: int) -> _Image:
        _, index, random = sampler.at(step, first_row + row)
        index = (index + offset) % len(source)
        return _encode(source, index, transform, random, on_host=index in refused)

    images = [first_usable(functools.partial(use, row), len(source), errors) for row in rows]
    return _pack(images, source.label_shape), errors


def join(chunks: Sequence[EncodedBatch]) -> EncodedBatch:
    """Joins a batch's chunks; the encoded bytes stay where they are."""
    data = tuple(piece for chunk in chunks for piece in chunk.data)
    columns = {
        name: np.concatenate([chunk.columns[name] for chunk in chunks])
        for name in chunks[0].columns
    }
    return EncodedBatch(data, columns)


def _encode(
    source: DecodedSource,
    index: int,
    transform: TrainTransform,
    random: np.random.Generator,
    *,
    on_host: bool,
) -> _Image:
    """Reads an image and draws for it; decodes it here if DALI would not do it as Pillow does."""
    data, label = source.read(index)
    header = None if on_host else read_header(data)
    # A file without its end may be truncated; the host's decoder decides whether it is corrupt.
    if header is not None and data.endswith(_END_OF_JPEG):
        size = header.width, header.height
        choices = transform.draw(size, random)
        corner, extent = _box(choices, size)
    else:
        pixels = decode(data, source.encoded.describe(index))
        size = pixels.shape[1], pixels.shape[0]
        choices = transform.draw(size, random)
        (left, top), (width, height) = _box(choices, size)
        data = _as_ppm(pixels[top : top + height, left : left + width])
        corner, extent = (0, 0), (width, height)
    resized, window = _placed(transform, choices, size)
    return _Image(
        data=data,
        corner=corner,
        extent=extent,
        resized=resized,
        window=window,
        flip=choices.flip,
        bicubic=choices.interpolation == "bicubic",
        index=index,
        label=label,
        draws=transform.encode(choices),
    )


def _box(choices: TrainChoices, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns left and top, width and height of the part of the image that is needed."""
    left, top, right, bottom = choices.box or (0, 0, *size)
    return (left, top), (right - left, bottom - top)


def _placed(
    transform: TrainTransform, choices: TrainChoices, size: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the height and width to resize to, and top and left of the crop in the result."""
    if choices.box is not None:
        return transform.size, (0, 0)
    width, height = size
    resized = (
        transform.size
        if transform.squash
        else geometry.covering_size(height, width, transform.size)
    )
    top, left = geometry.crop_corner(resized, transform.size, choices.offset)
    return resized, (top, left)


def _as_ppm(pixels: np.ndarray) -> bytes:
    """Writes pixels, uint8 `[height, width, 3]`, in a format that costs no decoding."""
    height, width, _ = pixels.shape
    return b"P6\n%d %d\n255\n" % (width, height) + pixels.tobytes()


def _pack(images: Sequence[_Image], label_shape: tuple[int, ...]) -> EncodedBatch:
    """Makes one array of the encoded bytes of all images, and one of each column."""
    data = np.concatenate([np.frombuffer(image.data, np.uint8) for image in images])
    columns = {
        name: np.array([getattr(image, name) for image in images], dtype)
        for name, dtype in _DTYPES.items()
    }
    columns["length"] = np.array([len(image.data) for image in images], np.int64)
    columns["label"] = columns["label"].reshape(len(images), *label_shape)
    draws = [image.draws for image in images if image.draws is not None]
    if draws:
        columns["draws"] = np.stack(draws)
    return EncodedBatch((data,), columns)
