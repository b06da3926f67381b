"""Draws the accuracy of finished trainings over their epochs."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from noah_jax.compare.panels import (
    MEASURES,
    Style,
    add_legend,
    as_png,
    make_panels,
    measures,
    styles,
)
from noah_jax.compare.records import Record

_MOST_COLUMNS = 3


def draw_curves(runs: Sequence[Record]) -> bytes:
    """Returns the figure of `curves_figure` as PNG."""
    return as_png(curves_figure(runs))


def curves_figure(runs: Sequence[Record]) -> Figure:
    """Draws the measure over the epochs: a panel for each configuration, a colour for each head.

    A thin line is one training, the thick line of a contender their mean.

    Args:
      runs: All trainings, each with its configuration, label, model and curve.
    """
    title = f"{measures(runs)} during training"
    figure, panels = make_panels(runs, title, columns=_MOST_COLUMNS)
    style_of = styles(runs)
    for panel in panels:
        own = [run for run in runs if run["config"] == panel.config]
        _draw_panel(panel.axes[0], own, style_of)
    add_legend(figure, style_of)
    return figure


def _draw_panel(axis: Axes, runs: Sequence[Record], style_of: Mapping[str, Style]) -> None:
    for label in dict.fromkeys(run["label"] for run in runs):
        curves = [run["curve"] for run in runs if run["label"] == label]
        colour, marker = style_of[label]
        # Trainings that stopped at other steps have no mean.
        mean = len({tuple(epoch for epoch, _ in curve) for curve in curves}) == 1
        for curve in curves:
            thin = (
                {"linewidth": 1, "alpha": 0.45} if mean and len(curves) > 1 else {"marker": marker}
            )
            axis.plot(*zip(*curve, strict=True), color=colour, **thin)
        if mean:
            epochs, values = np.mean(curves, axis=0).T
            axis.plot(epochs, values, color=colour, linewidth=2, marker=marker, markersize=5)
    last = max(epoch for run in runs for epoch, _ in run["curve"])
    axis.set_xlim(0, max(1.0, 1.03 * last))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("epoch")
    axis.set_ylabel(f"{MEASURES[runs[0]['measure']]} (%)")
