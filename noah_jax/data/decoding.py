"""Decodes images to RGB.

Between two decodings Python finds the processor's caches cold and takes three times as long for
its own work (120 us an image instead of 40). A training image is therefore made in two calls:
`start_transform` reads the header and draws the random choices, and the function that it returns
decodes and transforms. A thread starts many images before it finishes the first.
"""

import functools
import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from noah_jax.data.jpeg import decode_jpeg, read_header
from noah_jax.data.jpeg_regions import cut_region
from noah_jax.data.raw import decode_raw
from noah_jax.data.source import Label, Source, check_label
from noah_jax.data.transforms import TrainTransform, Transformed
from noah_jax.errors import CorruptImageError, one_line

DecodedImage = tuple[np.ndarray, Label]  # uint8 `[height, width, 3]`, and the label
# These write the image to the array that they are given, if any: contiguous uint8 `[*size, 3]`.
FinishImage = Callable[[np.ndarray | None], Transformed]
FinishExample = Callable[[np.ndarray | None], tuple[Transformed, Label]]


def decode(data: bytes, name: str = "the image") -> np.ndarray:
    """Decodes an image to uint8 `[height, width, 3]`, RGB, and ignores its EXIF orientation.

    Every format that Pillow reads is accepted, by content and not by file name. Other colour
    spaces, palettes and depths become RGB as Pillow's `convert("RGB")` makes them. The original
    ignores the orientation too.

    Args:
      data: The encoded image.
      name: How error messages call the image.

    Raises:
      CorruptImageError: If the image is truncated, or not an image that Pillow knows.
    """
    header = read_header(data)
    if header is not None and (pixels := decode_jpeg(data, header)) is not None:
        return pixels
    if header is None and (pixels := decode_raw(data)) is not None:
        return pixels
    return _decode_by_pillow(data, name)


def _decode_by_pillow(data: bytes, name: str) -> np.ndarray:
    try:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except MemoryError:
        raise  # the machine's fault, not the image's
    except Image.UnidentifiedImageError as error:
        reason = f"its {len(data):,} bytes are no image that Pillow can read"
        raise CorruptImageError(name, reason if data else "it is empty") from error
    except Exception as error:  # corrupt bytes make decoders raise errors of any kind
        reason = one_line(error, 200)
        raise CorruptImageError(name, reason) from error


def decode_and_transform(
    data: bytes, transform: TrainTransform, random: np.random.Generator, name: str = "the image"
) -> np.ndarray:
    """Returns `transform(decode(data), random)`, without decoding rows below the crop.

    If `transform.approximate` is set, the decoder is approximate too: faster, and off by about
    one level of 255.

    Raises:
      CorruptImageError: See `decode`. `random` may have been used by then.
    """
    return start_transform(data, transform, random, name)(None).pixels


def start_transform(
    data: bytes, transform: TrainTransform, random: np.random.Generator, name: str = "the image"
) -> FinishImage:
    """Draws a transform's random choices and returns the function that decodes and transforms."""
    header = read_header(data)
    if header is None:
        return lambda out: transform.transform(decode(data, name), random, out)
    choices = transform.draw((header.width, header.height), random)
    draws = transform.encode(choices)
    rows = None if choices.box is None else choices.box[3]

    def finish(out: np.ndarray | None) -> Transformed:
        if choices.box is not None and (region := cut_region(data, choices.box)) is not None:
            pixels = decode_jpeg(region.data, header, approximate=transform.approximate)
            if pixels is not None:
                moved = choices.move_box(-region.left, -region.top)
                return Transformed(transform.apply(pixels, moved, out), draws)
        pixels = decode_jpeg(data, header, rows=rows, approximate=transform.approximate)
        if pixels is None:
            pixels = _decode_by_pillow(data, name)
        return Transformed(transform.apply(pixels, choices, out), draws)

    return finish


class DecodedSource:
    """Random access to the decoded images of a source.

    Args:
      source: The encoded images and their labels.
      cache: Whether to keep every decoded image in memory. For datasets that fit there, this
        saves reading and decoding (0.3 ms for an image of the embedded sample) from the second
        epoch on.
    """

    def __init__(self, source: Source, *, cache: bool = False):
        self._source = source
        self._cache: dict[int, DecodedImage] | None = {} if cache else None

    @property
    def encoded(self) -> Source:
        """The encoded images."""
        return self._source

    @property
    def cached(self) -> bool:
        """Whether decoded images are kept in memory."""
        return self._cache is not None

    @property
    def name(self) -> str:
        """Name of the source, for messages."""
        return self._source.name

    @property
    def label_shape(self) -> tuple[int, ...]:
        """The shape of an image's label: `()`, or `(num_classes,)` with several labels."""
        return (len(self._source.class_names),) if self._source.multi_label else ()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> DecodedImage:
        """Returns an image and its label.

        Raises:
          CorruptImageError: If the image cannot be decoded.
          UnlabelledImageError: If its label is no class.
        """
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        data, label = self.read(index)
        decoded = decode(data, self._source.describe(index)), label
        if self._cache is not None:
            self._cache[index] = decoded
        return decoded

    def read(self, index: int) -> tuple[bytes, Label]:
        """Returns an encoded image and its label, which is checked if the source has classes.

        Raises:
          CorruptImageError: If the image cannot be read or its label is no class.
        """
        data, label = self._source[index]
        num_classes = len(self._source.class_names)
        if num_classes and not self._source.multi_label:
            check_label(self._source.describe(index), int(label), num_classes)
        return data, label

    def start(
        self, index: int, transform: TrainTransform, random: np.random.Generator
    ) -> FinishExample:
        """Reads an image and draws its transform's random choices, see `start_transform`.

        Returns:
          A function that takes the array to write to, which may be `None`, and returns the
          transformed image and its label. It raises a
          CorruptImageError if the image cannot be decoded or its label is no class; `random` may
          have been used by then.
        """
        if self._cache is not None:

            def finish_cached(out: np.ndarray | None) -> tuple[Transformed, Label]:
                pixels, label = self[index]
                return transform.transform(pixels, random, out), label

            return finish_cached
        try:
            data, label = self.read(index)
        except CorruptImageError as error:
            return functools.partial(_fail, error)
        finish = start_transform(data, transform, random, self._source.describe(index))
        return lambda out: (finish(out), label)


def _fail(error: CorruptImageError, out: np.ndarray | None) -> tuple[Transformed, Label]:
    raise error
