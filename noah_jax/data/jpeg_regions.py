"""Cuts the part of a JPEG file that a crop needs out of the file, before anything is decoded.

Most of the time to decode goes into the entropy code, which has no index: what stands above and
left of a crop must be decoded to get there. Restart markers are such an index. Where a file has
them in every row of its blocks, as `noah_jax.data.shrink` writes it and many cameras do, what lies
between two of them is decoded alone, and those that a crop needs make a smaller JPEG file. Its
pixels are exactly those of the whole file.
"""

from typing import NamedTuple

import numpy as np

from noah_jax.data.resize import Box, compiled

_SEQUENTIAL = (0xC0, 0xC1)
_FRAMES = range(0xC0, 0xD0)
_NOT_FRAMES = (0xC4, 0xC8, 0xCC)
_RESTART_INTERVAL = 0xDD
_SCAN = 0xDA
_DEFINES_INTERVAL = b"\xff\xdd\x00\x04"
# To enlarge colours that are stored at half the resolution, the decoder mixes each with its
# neighbours, which stand for 2 pixels.
_MARGIN = 2
_ONES = np.uint64(0x0101010101010101)
_TOPS = np.uint64(0x8080808080808080)


class Region(NamedTuple):
    """A part of a JPEG file.

    Attributes:
      data: A JPEG file of the part.
      left: Pixels that are cut off at the left.
      top: Pixels that are cut off at the top.
    """

    data: bytes
    left: int
    top: int


class _Layout(NamedTuple):
    """How the blocks lie in a file.

    Attributes:
      size_at: Byte at which height and width stand.
      scan_at: Byte at which the entropy code begins.
      width: Width of the image in pixels.
      height: Height of the image in pixels.
      piece: Width of what lies between two restart markers, in pixels.
      row: Height of it.
    """

    size_at: int
    scan_at: int
    width: int
    height: int
    piece: int
    row: int


def cut_region(data: bytes, box: Box) -> Region | None:
    """Cuts out the part of a JPEG file that has a box of pixels.

    Args:
      data: The file.
      box: Left, top, right and bottom of the box in pixels.

    Returns:
      The part; `None` if the file has no restart markers in every row, is corrupt, or everything
      is needed.
    """
    # Most files define no interval, and those that do, in the headers.
    if data.find(_DEFINES_INTERVAL, 0, 4096) < 0 or (layout := _read_layout(data)) is None:
        return None
    left, top, right, bottom = box
    piece, row = layout.piece, layout.row
    across, down = -(-layout.width // piece), -(-layout.height // row)
    first, last = max(left - _MARGIN, 0) // piece, min(-(-(right + _MARGIN) // piece), across)
    start, end = max(top - _MARGIN, 0) // row, min(-(-(bottom + _MARGIN) // row), down)
    if (first, last, start, end) == (0, across, 0, down) or first >= last or start >= end:
        return None
    out = np.empty(len(data), np.uint8)
    out[: layout.scan_at] = np.frombuffer(data, np.uint8, layout.scan_at)
    width = min(last * piece, layout.width) - first * piece
    height = min(end * row, layout.height) - start * row
    size = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    out[layout.size_at : layout.size_at + 4] = np.frombuffer(size, np.uint8)
    source = np.frombuffer(data, np.uint8)
    words = np.frombuffer(data, np.uint64, len(data) // 8)
    length = _copy_pieces(source, words, out, layout.scan_at, across, first, last, start, end)
    return Region(out[:length].tobytes(), first * piece, start * row) if length else None


def _read_layout(data: bytes) -> _Layout | None:
    """Reads the headers; returns `None` if the file's pieces cannot be told apart."""
    position, interval, size_at = 2, 0, 0
    width = height = block_width = block_height = components = 0
    while data[position : position + 1] == b"\xff" and position + 4 <= len(data):
        marker = data[position + 1]
        if marker in _SEQUENTIAL:
            size_at = position + 5
            height, width = (
                int.from_bytes(data[size_at + i : size_at + i + 2], "big") for i in (0, 2)
            )
            components = data[size_at + 4]
            sampling = data[size_at + 6 : size_at + 6 + 3 * components : 3]
            # A file of one component has blocks of 8 x 8 pixels, whatever its sampling says.
            if components == 1:
                sampling = b"\x11"
            block_width = 8 * max((s >> 4 for s in sampling), default=0)
            block_height = 8 * max((s & 15 for s in sampling), default=0)
        elif marker in _FRAMES and marker not in _NOT_FRAMES:
            return None
        elif marker == _RESTART_INTERVAL:
            interval = int.from_bytes(data[position + 4 : position + 6], "big")
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == _SCAN:
            in_one_scan = data[position + 4] == components
            blocks = -(-width // block_width) if block_width and block_height else 0
            scan_at = position + 2 + length
            if not interval or not blocks or blocks % interval or not in_one_scan:
                return None
            if scan_at >= len(data):
                return None
            return _Layout(size_at, scan_at, width, height, interval * block_width, block_height)
        position += 2 + length
    return None


@compiled
def _copy_pieces(
    data: np.ndarray,
    words: np.ndarray,
    out: np.ndarray,
    scan_at: int,
    across: int,
    first: int,
    last: int,
    start: int,
    end: int,
) -> int:
    """Copies some of the pieces between restart markers and numbers the markers anew.

    Args:
      data: uint8 `[bytes]`, the file.
      words: uint64 `[bytes // 8]`, the same bytes.
      out: uint8 `[bytes]`, what to write into, from `scan_at` on.
      scan_at: Where the first piece begins.
      across: Pieces in a row.
      first: The first piece of a row to copy.
      last: The piece after the last one of a row to copy.
      start: The first row to copy.
      end: The row after the last one to copy.

    Returns:
      The number of bytes of `out`; 0 if the markers are not as expected.
    """
    position = filled = scan_at
    number = copied = 0
    for base in range(scan_at // 8 * 8, len(data) - 1, 8):
        if base + 8 <= len(data):
            # A byte of 255 is a byte of 0 in the complement, and this is 0 if there is none.
            word = ~words[base // 8]
            if not (word - _ONES) & ~word & _TOPS:
                continue
        for at in range(max(base, scan_at), min(base + 8, len(data) - 1)):
            marker = data[at + 1]
            if data[at] != 0xFF or marker == 0:  # 255 in the code is followed by 0
                continue
            if marker != 0xD0 + number % 8 and marker != 0xD9:
                return 0
            row, column = number // across, number % across
            if row >= start and first <= column < last:
                out[filled : filled + at - position] = data[position:at]
                filled += at - position
                done = row == end - 1 and column == last - 1
                out[filled] = 0xFF
                out[filled + 1] = 0xD9 if done else 0xD0 + copied % 8
                filled += 2
                copied += 1
                if done:
                    return filled
            if marker == 0xD9:
                return 0
            position = at + 2
            number += 1
    return 0
