"""JPEG files decoded by simplejpeg: the top rows alone, where no more are needed.

Pillow and simplejpeg are both libjpeg-turbo, so their pixels are the same; simplejpeg takes
three quarters of the time, because it decodes into one array at once. A crop that ends above
the image's last row needs no rows below it: told of fewer rows in the frame header, the decoder
stops there.
"""

from typing import NamedTuple

import numpy as np
import simplejpeg

# In other colour spaces (CMYK, and RGB itself) Pillow's own conversion counts.
_PLAIN = ("YCbCr", "Gray")
# The last rows that are decoded lack the neighbours below from which their colours are
# enlarged: as many as a row of colour stands for, at most 4.
_MARGIN = 8
_SEQUENTIAL = (0xC0, 0xC1)  # frames whose rows come one after the other
_WITHOUT_FRAME = (0xC4, 0xC8, 0xCC)  # markers of the frames' range that are none
_FRAMES = range(0xC0, 0xD0)
_SCAN = 0xDA
_END = b"\xff\xd9"


class Header(NamedTuple):
    """What a file says of itself."""

    width: int
    height: int
    # Where the frame header has the height; `None` if the rows do not come in order, or the
    # file breaks off.
    height_at: int | None


def read_header(data: bytes) -> Header | None:
    """The header of an ordinary JPEG file; `None` for all that Pillow should read."""
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colors not in _PLAIN:
        return None
    return Header(width, height, _find_height(data) if data.endswith(_END) else None)


def decode_jpeg(
    data: bytes, header: Header, *, rows: int | None = None, fast: bool = False
) -> np.ndarray | None:
    """The pixels, uint8 `[height, width, 3]`, or at least the first `rows`.

    Args:
      data: the file.
      header: what `read_header` gave.
      rows: how many rows are needed; `None` for all.
      fast: with an approximate inverse cosine transform and enlargement of the colours.

    Returns:
      The pixels; `None` for a damaged file, which Pillow may still read.
    """
    strict = True
    if rows is not None and header.height_at is not None and rows + _MARGIN < header.height:
        at = header.height_at
        data = data[:at] + (rows + _MARGIN).to_bytes(2, "big") + data[at + 2 :]
        strict = False  # what is left of the file would be an error
    try:
        return simplejpeg.decode_jpeg(data, fastdct=fast, fastupsample=fast, strict=strict)
    except ValueError:
        return None


def _find_height(data: bytes) -> int | None:
    position = 2  # after the start of the image
    while data[position : position + 1] == b"\xff" and position + 4 <= len(data):
        marker = data[position + 1]
        if marker in _SEQUENTIAL:
            return position + 5  # after marker, length and precision
        if marker == _SCAN or (marker in _FRAMES and marker not in _WITHOUT_FRAME):
            return None
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None
