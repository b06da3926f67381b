"""Draws a reliability diagram: the accuracy of images by the confidence of their predictions."""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from noah_jax.evaluation.calibration import NUM_BINS, Calibration, Scores
from noah_jax.pictures.fonts import fonts
from noah_jax.pictures.text import shorten

_BAR, _MARK, _LINE = "#3b6ea8", "#d1242f", "#57606a"
_TITLE_WIDTH = 700  # pixels of the size of `shorten`; the figure writes larger


def draw_reliability(calibration: Calibration, title: str = "") -> Figure:
    """Draws all images as they are, and beside them the half with the fitted temperature.

    A bar is the accuracy of a bin, and the red mark the mean confidence in it: a model is
    overconfident where the mark is above the bar. Below are the bins' fractions of the images.

    Args:
      calibration: What was measured.
      title: What was evaluated.
    """
    figure = Figure(figsize=(9.2, 5.2), dpi=110)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.08)
    FigureCanvasAgg(figure)
    title = shorten(title, _TITLE_WIDTH, keep_end=True)
    figure.suptitle(title, fontfamily=fonts().families(title), parse_math=False)
    panels = (
        ("all images", calibration.all_images),
        (f"the other half, temperature {calibration.temperature:.3g}", calibration.after),
    )
    axes = figure.subplots(2, 2, sharex=True, squeeze=False, height_ratios=[4, 1])
    for (upper, lower), (words, scores) in zip(axes.T, panels, strict=True):
        _draw(upper, lower, scores)
        upper.set_title(f"{words}: ECE {100 * scores.ece:.2f} %", fontsize=10)
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("% of images")
    axes[0, 0].legend(loc="upper left", frameon=False)
    return figure


def encode_figure(figure: Figure) -> bytes:
    """Encodes a figure as PNG."""
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _draw(upper: Axes, lower: Axes, scores: Scores) -> None:
    filled = scores.counts > 0
    middle = (np.arange(NUM_BINS)[filled] + 0.5) / NUM_BINS
    width = 0.92 / NUM_BINS
    upper.plot([0, 1], [0, 1], color=_LINE, linestyle="--", linewidth=1)
    upper.bar(middle, scores.accuracy[filled], width, color=_BAR, label="accuracy")
    upper.plot(
        middle,
        scores.confidence[filled],
        linestyle="none",
        marker="_",
        markersize=12,
        markeredgewidth=2,
        color=_MARK,
        label="mean confidence",
    )
    lower.bar(middle, 100 * scores.counts[filled] / scores.counts.sum(), width, color=_LINE)
    lower.set_xlabel("confidence")
    for axis in (upper, lower):
        axis.set_axisbelow(True)
        axis.grid(color="#d0d7de", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    upper.set(xlim=(0, 1), ylim=(0, 1))
