"""Draws the accuracy of the contenders against what they cost."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noah_jax.compare.panels import MEASURES, as_png, colours, make_panels, measures
from noah_jax.compare.records import Record

# Each axis: what it is called, the key of the rows and the unit's size.
_COSTS = (
    ("million multiply-adds for one image", "multiply_adds", 1e6),
    ("ms a step (training, input included)", "step_ms", 1.0),
)


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
    for panel in panels:
        own = [row for row in rows if row["config"] == panel.config]
        for axis, (words, key, size) in zip(panel.axes, _COSTS, strict=True):
            _draw_axis(axis, own, key, size, rows)
            axis.set_xlabel(words)
            axis.set_ylabel(f"{MEASURES[own[0]['measure']]} (%)")
    return figure


def _draw_axis(
    axis: Axes, own: Sequence[Record], key: str, size: float, rows: Sequence[Record]
) -> None:
    colour_of = colours(rows)
    for row in own:
        if row[key] is None:
            continue
        cost, colour = row[key] / size, colour_of[row["label"]]
        axis.errorbar(cost, row["mean"], yerr=row["std"], fmt="o", color=colour, capsize=3)
        axis.annotate(
            row["label"],
            (cost, row["mean"]),
            xytext=(6, 4),
            textcoords="offset points",
            fontsize="small",
            color=colour,
            parse_math=False,
        )
    axis.margins(x=0.25, y=0.15)
