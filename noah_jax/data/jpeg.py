"""Decodes JPEG files with simplejpeg, and only the top rows where no more are needed.

Pillow and simplejpeg both use libjpeg-turbo, so their pixels are the same. simplejpeg takes
three quarters of the time, because it decodes into one array at once. A crop that ends above the
image's last row does not need the rows below it: a smaller height in the frame header makes the
decoder stop there.
"""

from typing import NamedTuple

import numpy as np
import simplejpeg

# Other colour spaces (CMYK, and RGB itself) need Pillow's own conversion.
_PLAIN_COLORS = ("YCbCr", "Gray")
# Colours are stored at a lower resolution. Enlarging them needs the rows below, which the last
# decoded rows do not have; this affects as many rows as one row of colours covers, at most 4.
_MARGIN = 8
_SEQUENTIAL = (0xC0, 0xC1)  # markers of frames whose rows come one after the other
_NOT_FRAMES = (0xC4, 0xC8, 0xCC)  # markers in the range of frames that are something else
_FRAMES = range(0xC0, 0xD0)
_SCAN = 0xDA
_END = b"\xff\xd9"


class Header(NamedTuple):
    """What a JPEG file's header says.

    Attributes:
      width: Width of the image in pixels.
      height: Height of the image in pixels.
      height_at: Byte at which the frame header holds the height; `None` if the rows are not
        stored in order, or the file is truncated.
    """

    width: int
    height: int
    height_at: int | None


def read_header(data: bytes) -> Header | None:
    """Reads the header of an ordinary JPEG file; returns `None` if Pillow should read the file."""
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colors not in _PLAIN_COLORS:
        return None
    return Header(width, height, _find_height(data) if data.endswith(_END) else None)


def decode_jpeg(
    data: bytes, header: Header, *, rows: int | None = None, approximate: bool = False
) -> np.ndarray | None:
    """Decodes a JPEG file, or at least its first `rows` rows.

    Args:
      data: The file.
      header: The header that `read_header` returned.
      rows: Number of rows that are needed; `None` for all.
      approximate: Whether to use a faster, approximate inverse cosine transform and a simple
        enlargement of the colours.

    Returns:
      uint8 `[height, width, 3]`, RGB; `None` for a corrupt file, which Pillow may still read.
    """
    strict = True
    if rows is not None and header.height_at is not None and rows + _MARGIN < header.height:
        at = header.height_at
        lower = (rows + _MARGIN).to_bytes(2, "big")
        data = b"".join((data[:at], lower, memoryview(data)[at + 2 :]))
        strict = False  # in strict mode the rest of the file is an error
    try:
        return simplejpeg.decode_jpeg(
            data, fastdct=approximate, fastupsample=approximate, strict=strict
        )
    except ValueError:
        return None


def _find_height(data: bytes) -> int | None:
    position, length = 2, len(data)  # after the marker of the image's start
    while position + 4 <= length and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in _SEQUENTIAL:
            return position + 5  # after marker, length and precision
        if marker == _SCAN or (marker in _FRAMES and marker not in _NOT_FRAMES):
            return None
        position += 2 + (data[position + 2] << 8 | data[position + 3])
    return None
