"""Makes artificial photographs, for measurements where there is no ImageNet.

They are noise whose amplitude falls with the frequency as it does in photographs. Their size and
their number of bytes, on which the time to decode depends, are about those of ImageNet's images.
"""

import io
import math
import pathlib

import numpy as np
from PIL import Image

from noah_jax.data.shrink import shrink_image
from noah_jax.data.shrunk import Shrinking
from noah_jax.data.source import AbsentSource, Label, Source

SIZE = (500, 375)  # width and height in pixels, the most frequent of ImageNet
_BYTES = 110_000  # average size of a file of ImageNet
_FALL = 1.1  # the amplitude is the frequency to the power of minus this
_DIFFERENT = 16  # photographs of a source
_SHRUNK = 64  # images of a source that are made smaller


def make_photograph(seed: int, size: tuple[int, int] = SIZE) -> bytes:
    """Returns a JPEG file of about 110,000 bytes, or as many a pixel if it has another size.

    Args:
      seed: Decides what is on it.
      size: Width and height in pixels.
    """
    random = np.random.RandomState(seed)
    width, height = size
    wanted = _BYTES * (width * height) / (SIZE[0] * SIZE[1])
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = np.maximum(frequency, 1 / max(size)) ** -_FALL
    noise = random.standard_normal((3, 2, *amplitude.shape))
    luma, red, blue = np.fft.irfft2((noise[:, 0] + 1j * noise[:, 1]) * amplitude, (height, width))
    pixels = np.stack([luma + 0.3 * red, luma, luma + 0.3 * blue], -1)
    pixels = 120 + 50 * (pixels - pixels.mean()) / pixels.std()
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    for quality in range(75, 96):
        out = io.BytesIO()
        image.save(out, "JPEG", quality=quality)
        if out.tell() >= wanted:
            break
    return out.getvalue()


def write_class_folder(
    folder: pathlib.Path, *, files: int, different: int = 32, size: tuple[int, int] = SIZE
) -> None:
    """Writes `train/CLASS/image.jpg` and `val/CLASS/image.jpg` of four classes.

    Args:
      folder: Folder to make.
      files: Number of training files; there are four validation files.
      different: Number of different photographs among them.
      size: Their width and height in pixels.
    """
    photographs = [make_photograph(seed, size) for seed in range(min(files, different))]
    for split, count in (("train", files), ("val", 4)):
        for i in range(count):
            path = folder / split / f"class{i % 4}" / f"{i:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photographs[i % len(photographs)])


class Photographs(AbsentSource):
    """A split that is not on this machine, with made photographs in the place of its images.

    Args:
      absent: The split.
    """

    def __init__(self, absent: AbsentSource) -> None:
        super().__init__(
            absent.name, absent.class_names, len(absent), multi_label=absent.multi_label
        )
        self._images = [make_photograph(seed) for seed in range(_DIFFERENT)]

    def __getitem__(self, index: int) -> tuple[bytes, Label]:
        label = np.zeros(len(self.class_names), np.int8) if self.multi_label else 0
        return self._images[index % len(self._images)], label


class ShrunkSource:
    """Some images of a source, made smaller, as `prepare --max-side` would store them.

    Args:
      source: The source.
      side: The most pixels of the longer side.

    Attributes:
      shrunk: Whether any image is smaller than it was.
    """

    def __init__(self, source: Source, side: int) -> None:
        self.name = source.name
        self.class_names = source.class_names
        self.multi_label = source.multi_label
        self.shrunk = False
        shrinking = Shrinking(side)
        self._images: list[tuple[bytes, Label]] = []
        for index in range(0, len(source), math.ceil(len(source) / _SHRUNK)):
            data, label = source[index]
            smaller = shrink_image(data, shrinking, source.describe(index))
            self.shrunk |= smaller != data
            self._images.append((smaller, label))

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[bytes, Label]:
        return self._images[index]

    def describe(self, index: int) -> str:
        """Returns how messages call an image."""
        return f"image {index} of {self.name}, made smaller"

    def file_name(self, index: int) -> str:
        """Returns how messages call an image, because it has no file."""
        return self.describe(index)
