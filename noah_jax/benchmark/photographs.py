"""Makes a class folder of artificial photographs, for measurements where there is no ImageNet.

They are noise whose amplitude falls with the frequency as it does in photographs. Their size and
their number of bytes, on which the time to decode depends, are about those of ImageNet's images.
"""

import io
import pathlib

import numpy as np
from PIL import Image

SIZE = (500, 375)  # width and height in pixels, the most frequent of ImageNet
_BYTES = 110_000  # average size of a file of ImageNet
_FALL = 1.1  # the amplitude is the frequency to the power of minus this


def make_photograph(seed: int) -> bytes:
    """Returns a JPEG file of about 110,000 bytes."""
    random = np.random.RandomState(seed)
    width, height = SIZE
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = np.maximum(frequency, 1 / max(SIZE)) ** -_FALL
    noise = random.standard_normal((3, 2, *amplitude.shape))
    luma, red, blue = np.fft.irfft2((noise[:, 0] + 1j * noise[:, 1]) * amplitude, (height, width))
    pixels = np.stack([luma + 0.3 * red, luma, luma + 0.3 * blue], -1)
    pixels = 120 + 50 * (pixels - pixels.mean()) / pixels.std()
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    for quality in range(75, 96):
        out = io.BytesIO()
        image.save(out, "JPEG", quality=quality)
        if out.tell() >= _BYTES:
            break
    return out.getvalue()


def write_class_folder(folder: pathlib.Path, *, files: int, different: int = 32) -> None:
    """Writes `train/CLASS/image.jpg` and `val/CLASS/image.jpg` of four classes.

    Args:
      folder: Folder to make.
      files: Number of training files; there are four validation files.
      different: Number of different photographs among them.
    """
    photographs = [make_photograph(seed) for seed in range(min(files, different))]
    for split, count in (("train", files), ("val", 4)):
        for i in range(count):
            path = folder / split / f"class{i % 4}" / f"{i:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photographs[i % len(photographs)])
