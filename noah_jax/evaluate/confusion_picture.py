"""Draws a confusion matrix as a picture."""

from collections.abc import Sequence

import numpy as np

from noah_jax.pictures.colour_bar import colour_bar
from noah_jax.pictures.fonts import fonts
from noah_jax.pictures.layout import below, beside, blank, line, pad
from noah_jax.pictures.text import INK, PALE_INK, SIZE, Label, shorten, text_width, write

_SIDE = 840  # about the width of the matrix in pixels
_LARGEST_CELL, _SMALLEST_NAMED = 88, 12  # pixels; smaller cells have no names beside them
_MOST_CELLS = 1000  # of more classes several share a pixel
_LONGEST_NAME = 220  # pixels
_SMALLEST_NUMBER = 8  # height of a number in a cell in pixels
_MARGIN, _GAP = 24, 10
_LEAST_WIDTH = 420
_NONE = "#b0b8c0"  # colour of a 0
_WHITE, _DARK = np.array([255, 255, 255]), np.array([8, 48, 107])
_TICKS = (0.0, 1.0, 0.25, 0.05, 0.5, 0.01, 0.1)  # of the colour bar, the most important first


def draw_confusion(
    counts: np.ndarray, class_names: Sequence[str], subtitle: str = ""
) -> np.ndarray:
    """Draws the matrix; the darker a cell, the larger its fraction of the label's images.

    Args:
      counts: Images by label (rows, from the top) and predicted class (columns).
      class_names: Names of the classes.
      subtitle: What was evaluated, a line below the title.

    Returns:
      uint8 `[height, width, 3]`.
    """
    fonts().families("".join([*class_names, subtitle]))
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    shared = -(-len(counts) // _MOST_CELLS)
    fractions = _largest_of(fractions, shared)
    cell = max(1, min(_LARGEST_CELL, _SIDE // len(fractions)))
    matrix = _colours(fractions).repeat(cell, 0).repeat(cell, 1)
    if shared == 1:
        matrix = _write_numbers(matrix, counts, fractions, cell)
    matrix = np.pad(matrix, ((1, 1), (1, 1), (0, 0)), constant_values=140)
    named = _add_names(matrix, class_names, cell, shared)
    width = max(named.shape[1], _LEAST_WIDTH)
    right = f"{counts.trace():,} of {counts.sum():,} images on the diagonal"
    if counts.sum():
        right += f", {100 * counts.trace() / counts.sum():.2f}\u00a0%"
    heading = [line("Confusion matrix", width, size=18, bold=True)]
    if subtitle:
        heading.append(line(subtitle, width, keep_end=True))
    heading.append(line(right, width, colour=PALE_INK))
    picture = below([below(heading), named, _bar(width, shared)], _GAP)
    return pad(picture, top=_MARGIN, right=_MARGIN, bottom=_MARGIN, left=_MARGIN)


def _colours(fractions: np.ndarray) -> np.ndarray:
    # The square root makes rare confusions visible; the colour bar says so.
    pixels = _WHITE + np.sqrt(fractions)[..., None] * (_DARK - _WHITE)
    return pixels.round().astype(np.uint8)


def _largest_of(fractions: np.ndarray, shared: int) -> np.ndarray:
    """Returns the largest value of each square of `shared` x `shared` cells."""
    size = -(-len(fractions) // shared)
    padded = np.pad(fractions, (0, size * shared - len(fractions)))
    return padded.reshape(size, shared, size, shared).max((1, 3))


def _write_numbers(
    matrix: np.ndarray, counts: np.ndarray, fractions: np.ndarray, cell: int
) -> np.ndarray:
    """Writes the counts into the cells, if the longest of them fits."""
    longest = str(counts.max())
    size = min(SIZE, 0.45 * cell, SIZE * (cell - 4) / text_width(longest))
    if size < _SMALLEST_NUMBER:
        return matrix
    labels = []
    for (row, column), count in np.ndenumerate(counts):
        dark = np.sqrt(fractions[row, column]) > 0.5
        colour = "white" if dark else INK if count else _NONE
        x, y = cell * (column + 0.5), cell * (row + 0.5)
        labels.append(Label(str(count), x, y, size, colour=colour, anchor="center"))
    return write(matrix, labels)


def _add_names(
    matrix: np.ndarray, class_names: Sequence[str], cell: int, shared: int
) -> np.ndarray:
    """Adds the names of the labels on the left and of the predicted classes above.

    Where cells are too small for names, some classes' indices stand there.
    """
    if cell >= _SMALLEST_NAMED and shared == 1:
        size = min(SIZE, cell - 1)
        texts = {i: shorten(name, _LONGEST_NAME, size) for i, name in enumerate(class_names)}
    else:
        size = 12
        step = next(
            n for n in (10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if n * cell > 30 * shared
        )
        texts = {i: str(i) for i in range(0, len(class_names), step)}
    widest = int(max(text_width(text, size) for text in texts.values())) + 8
    places = {i: max(size / 2, 1 + cell / shared * (i + 0.5)) for i in texts}
    beside_rows = [
        Label(text, widest - 5, places[i], size, anchor="right") for i, text in texts.items()
    ]
    # The names above are written below each other, then turned left: they read upwards.
    above_columns = [Label(text, 5, places[i], size) for i, text in texts.items()]
    axis = line("label", matrix.shape[0], colour=PALE_INK, anchor="center")
    left = beside([np.rot90(axis), write(blank(matrix.shape[0], widest), beside_rows)])
    axis = line("predicted class", matrix.shape[1], colour=PALE_INK, anchor="center")
    above = below([axis, np.rot90(write(blank(matrix.shape[1], widest), above_columns))])
    corner = blank(above.shape[0], left.shape[1])
    return below([beside([corner, above]), beside([left, matrix])])


def _bar(width: int, shared: int) -> np.ndarray:
    colours = _colours(np.linspace(0, 1, 256) ** 2)
    ticks = [(fraction**0.5, f"{100 * fraction:g}\u00a0%") for fraction in _TICKS]
    caption = "of the label's images; the colour goes with the square root"
    if shared > 1:
        caption += f"; a pixel shows the largest of {shared} x {shared} cells"
    bar = colour_bar(colours, ticks, min(width, _LEAST_WIDTH))
    return below([bar, line(caption, width, size=12, colour=PALE_INK)], 2)
