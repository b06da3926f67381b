"""Draws the accuracy of the contenders against what they cost."""

from collections.abc import Mapping, Sequence

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

# Each axis: what it is called, the key of the rows and the unit's size.
_COSTS = (
    ("million multiply-adds for one image", "multiply_adds", 1e6),
    ("ms a step (training, input included)", "step_ms", 1.0),
)
_MOST_TICKS = 6


def draw_costs(rows: Sequence[Record]) -> bytes:
    """Returns the figure of `costs_figure` as PNG."""
    return as_png(costs_figure(rows))


def costs_figure(rows: Sequence[Record]) -> Figure:
    """Draws the mean of the measure against arithmetic and against time: two axes a configuration.

    A bar is the standard deviation over the seeds. A contender whose cost is not known is left out
    of that axis.

    Args:
      rows: The rows of the table, see `noah_jax.compare.summary.summarise`.
    """
    title = f"{measures(rows)} against cost"
    figure, panels = make_panels(rows, title, columns=1, each=len(_COSTS))
    style_of = styles(rows)
    for panel in panels:
        own = [row for row in rows if row["config"] == panel.config]
        for axis, (words, key, size) in zip(panel.axes, _COSTS, strict=True):
            _draw_axis(axis, own, key, size, style_of)
            axis.set_xlabel(words)
            axis.set_ylabel(f"{MEASURES[own[0]['measure']]} (%)")
    add_legend(figure, style_of)
    return figure


def _draw_axis(
    axis: Axes, own: Sequence[Record], key: str, size: float, style_of: Mapping[str, Style]
) -> None:
    for row in own:
        if row[key] is None:
            continue
        colour, marker = style_of[row["label"]]
        axis.errorbar(
            row[key] / size,
            row["mean"],
            yerr=row["std"],
            color=colour,
            marker=marker,
            markersize=7,
            elinewidth=1,
            capsize=3,
        )
    axis.margins(x=0.1, y=0.1)
    axis.xaxis.set_major_locator(MaxNLocator(_MOST_TICKS))
