"""Resizes as Pillow does, compiled by Numba: the same bytes in a fifth of the time.

Pillow (src/libImaging/Resample.c, version 13) resizes 8-bit images in two passes, one along each
side. Each pass computes sums of integers, pixel by pixel. Sums of integers are the same in any
order, so here a weight is multiplied with many bytes at once, and their sums stay in the
processor's registers (`_blend`). The pass along rows first lays the same pixel of many rows side
by side. If a later Pillow resizes differently, tests/data/test_resize.py fails and this file must
follow.
"""

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import extending
from numba.core import cgutils

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels

# Fractional bits of a weight; with the 8 bits of a pixel and 2 spare ones they make 32.
_BITS = 22
_HALF = 1 << (_BITS - 1)
# Bytes whose sums are computed together. They fill four of the sixteen registers of AVX2.
_LANES = 32
# Rows that go through the horizontal pass together; so few stay in the processor's first cache.
_ROWS = 16
_PITCH = 4 * _ROWS  # bytes of the same pixel in these rows; three colours and an empty byte each


def resize(
    pixels: np.ndarray,
    size: tuple[int, int],
    interpolation: str,
    *,
    box: Box | None = None,
    flip: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Returns what Pillow's `crop(box).resize(size)` returns, flipped left to right if asked.

    Args:
      pixels: uint8 `[height, width, 3]`.
      size: `(height, width)` of the result in pixels.
      interpolation: "bilinear" or "bicubic".
      box: The box to cut out first; by default the whole image.
      flip: Whether to flip the result.
      out: Array to write the result to, such as a row of a batch: contiguous uint8 `[*size, 3]`.

    Returns:
      uint8 `[*size, 3]`: `out`, if it is given.
    """
    if out is None:
        out = np.empty((*size, 3), np.uint8)
    left, top, right, bottom = box or (0, 0, *pixels.shape[1::-1])
    across, down = right - left, bottom - top
    height, width = size
    pitch = 3 * pixels.shape[1]
    start = top * pitch + 3 * left
    source, target = np.ascontiguousarray(pixels).reshape(-1), out.reshape(-1)
    bicubic = interpolation == "bicubic"
    # Pillow 13's rule for which pass comes first.
    if down > height and down - height > 2 * (across - width):
        squeezed = np.empty(height * 3 * across, np.uint8)
        _resize_columns(source, start, pitch, down, 3 * across, height, bicubic, squeezed)
        _resize_rows(squeezed, 0, 3 * across, height, across, width, bicubic, flip, target)
    else:
        squeezed = np.empty(down * 3 * width, np.uint8)
        _resize_rows(source, start, pitch, down, across, width, bicubic, flip, squeezed)
        _resize_columns(squeezed, 0, 3 * width, down, 3 * width, height, bicubic, target)
    return out


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function at its first call, to run without Python's lock.

    The machine code is cached on disk if there is a folder for it.
    """
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # raised if there is no folder for the cache
        return numba.njit(nogil=True)(function)


@compiled
def _weights(source: int, target: int, bicubic: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns for each target pixel the first source pixel, the number of them, their weights."""
    scale = source / target
    stretch = max(scale, 1.0)  # to shrink, the filter spans as many pixels as become one
    support = (2.0 if bicubic else 1.0) * stretch
    first = np.empty(target, np.int64)
    count = np.empty(target, np.int64)
    weights = np.zeros((target, 2 * math.ceil(support) + 1), np.int32)
    exact = np.empty(weights.shape[1])
    for i in range(target):
        center = (i + 0.5) * scale
        low = max(int(center - support + 0.5), 0)
        high = min(int(center + support + 0.5), source)
        total = 0.0
        for k in range(high - low):
            x = abs((k + low - center + 0.5) * (1.0 / stretch))
            if not bicubic:
                weight = 1.0 - x if x < 1.0 else 0.0
            elif x < 1.0:
                weight = (1.5 * x - 2.5) * x * x + 1.0
            elif x < 2.0:
                weight = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
            else:
                weight = 0.0
            exact[k] = weight
            total += weight
        for k in range(high - low):
            weight = exact[k] / total * (1 << _BITS)
            weights[i, k] = int(weight - 0.5) if weight < 0 else int(weight + 0.5)
        first[i] = low
        count[i] = high - low
    return first, count, weights


_intrinsic: Callable[..., Any] = extending.intrinsic


@_intrinsic
def _blend(
    typing: Any,
    source: Any,
    at: Any,
    pitch: Any,
    weights: Any,
    weights_at: Any,
    count: Any,
    out: Any,
    out_at: Any,
) -> Any:
    """Writes the rounded weighted sums of `count` runs of `_LANES` bytes to `out`.

    The runs are `source[at + k * pitch :]` and their weights `weights[weights_at + k]`; all arrays
    are flat. It is written in LLVM's vectors because a compiler that vectorises loops by itself
    keeps the sums of more than a few runs in memory, which takes twice as long.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, at, pitch, weights, weights_at, count, out, out_at = args
        int32 = ir.IntType(32)
        sums, pixels = (ir.VectorType(ir.IntType(bits), _LANES) for bits in (32, 8))
        everywhere = ir.Constant(sums, [0] * _LANES)  # takes a vector's first element everywhere

        def constant(value: int) -> Any:
            return ir.Constant(sums, [value] * _LANES)

        def address(array: Any, kind: Any, index: Any, element: Any) -> Any:
            data = context.make_array(kind)(context, builder, array).data
            return builder.bitcast(builder.gep(data, [index]), element.as_pointer())

        total = cgutils.alloca_once_value(builder, constant(_HALF))
        with cgutils.for_range(builder, count) as loop:
            position = builder.add(at, builder.mul(loop.index, pitch))
            run = builder.load(address(source, signature.args[0], position, pixels), align=1)
            position = builder.add(weights_at, loop.index)
            weight = builder.load(address(weights, signature.args[3], position, int32))
            weight = builder.insert_element(constant(0), weight, ir.Constant(int32, 0))
            weight = builder.shuffle_vector(weight, constant(0), everywhere)
            product = builder.mul(builder.zext(run, sums), weight)
            builder.store(builder.add(builder.load(total), product), total)
        level = builder.ashr(builder.load(total), constant(_BITS))
        for edge, beyond in ((0, "<"), (255, ">")):
            outside = builder.icmp_signed(beyond, level, constant(edge))
            level = builder.select(outside, constant(edge), level)
        target = address(out, signature.args[6], out_at, pixels)
        builder.store(builder.trunc(level, pixels), target, align=1)
        return context.get_dummy_value()

    number = numba.types.intp
    signature = numba.types.void(source, number, number, weights, number, number, out, number)
    return signature, generate


@compiled
def _resize_rows(
    pixels: np.ndarray,
    start: int,
    pitch: int,
    down: int,
    across: int,
    width: int,
    bicubic: bool,
    flip: bool,
    out: np.ndarray,
) -> None:
    """Resizes along rows: `down` rows, `pitch` bytes apart, of `across` pixels of 3 bytes each."""
    first, count, weights = _weights(across, width, bicubic)
    columns = weights.shape[1]
    flat_weights = weights.reshape(-1)
    block, mixed = np.empty((across, _ROWS), np.uint32), np.empty((width, _ROWS), np.uint32)
    block_bytes = block.view(np.uint8).reshape(-1)
    mixed_bytes = mixed.view(np.uint8).reshape(-1)
    for top in range(0, down, _ROWS):
        rows = min(_ROWS, down - top)
        for y in range(rows):
            _unpack(pixels, start + (top + y) * pitch, across, block, y)
        for i in range(width):
            for lane in range(0, _PITCH, _LANES):
                at = first[i] * _PITCH + lane
                to = i * _PITCH + lane
                _blend(
                    block_bytes, at, _PITCH, flat_weights, i * columns, count[i], mixed_bytes, to
                )
        for y in range(rows):
            _pack(mixed, y, width, flip, out, (top + y) * 3 * width)


@compiled
def _unpack(pixels: np.ndarray, start: int, across: int, block: np.ndarray, y: int) -> None:
    """Writes a row of pixels of three bytes as words to a column of a block."""
    row = pixels[start : start + 3 * across]
    # The fourth byte is the next pixel's: one load of four bytes is faster than three of one.
    for x in range(across - 1):
        block[x, y] = (
            np.uint32(row[3 * x])
            | (np.uint32(row[3 * x + 1]) << np.uint32(8))
            | (np.uint32(row[3 * x + 2]) << np.uint32(16))
            | (np.uint32(row[3 * x + 3]) << np.uint32(24))
        )
    x = across - 1
    block[x, y] = (
        np.uint32(row[3 * x])
        | (np.uint32(row[3 * x + 1]) << np.uint32(8))
        | (np.uint32(row[3 * x + 2]) << np.uint32(16))
    )


@compiled
def _pack(block: np.ndarray, y: int, width: int, flip: bool, out: np.ndarray, start: int) -> None:
    """Writes a column of a block as a row of pixels of three bytes."""
    row = out[start : start + 3 * width]
    for x in range(width):
        word = block[width - 1 - x if flip else x, y]
        row[3 * x] = np.uint8(word)
        row[3 * x + 1] = np.uint8(word >> np.uint32(8))
        row[3 * x + 2] = np.uint8(word >> np.uint32(16))
        if x < width - 1:  # the next pixel overwrites it; one store of four bytes is faster
            row[3 * x + 3] = np.uint8(word >> np.uint32(24))


@compiled
def _resize_columns(
    pixels: np.ndarray,
    start: int,
    pitch: int,
    down: int,
    across: int,
    height: int,
    bicubic: bool,
    out: np.ndarray,
) -> None:
    """Resizes along columns: `down` rows, `pitch` bytes apart, of `across` bytes each."""
    first, count, weights = _weights(down, height, bicubic)
    columns = weights.shape[1]
    flat_weights = weights.reshape(-1)
    for i in range(height):
        row, weights_at, to = start + first[i] * pitch, i * columns, i * across
        for j in range(0, across - _LANES + 1, _LANES):
            _blend(pixels, row + j, pitch, flat_weights, weights_at, count[i], out, to + j)
        rest = across % _LANES
        if rest and across > _LANES:  # some bytes before the last ones are computed again
            j = across - _LANES
            _blend(pixels, row + j, pitch, flat_weights, weights_at, count[i], out, to + j)
        elif rest:
            for j in range(across):
                total = _HALF
                for k in range(count[i]):
                    total += int(pixels[row + k * pitch + j]) * weights[i, k]
                out[to + j] = min(max(np.int32(total) >> _BITS, 0), 255)
