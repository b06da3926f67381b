"""Reads and writes raw pixels as PPM files: a line of text with the size, then the pixels.

Pillow and every picture viewer read them too.
"""

import re

import numpy as np

_HEADER = re.compile(rb"P6\s(\d{1,6})\s(\d{1,6})\s255\s")


def encode_raw(pixels: np.ndarray) -> bytes:
    """Returns a PPM file of uint8 pixels `[height, width, 3]`."""
    height, width, _ = pixels.shape
    return b"P6 %d %d 255\n" % (width, height) + pixels.tobytes()


def decode_raw(data: bytes) -> np.ndarray | None:
    """Returns the uint8 pixels `[height, width, 3]` of a PPM file.

    Returns:
      The pixels; `None` if it is no such file, or one that Pillow should read.
    """
    header = _HEADER.match(data)
    if header is None:
        return None
    width, height = map(int, header.groups())
    start, count = header.end(), 3 * width * height
    if not count or len(data) < start + count:
        return None
    pixels = np.frombuffer(data, np.uint8, count, start).reshape(height, width, 3)
    # What is compiled takes arrays that can be written to; a copy costs less than a second program.
    return pixels.copy()
