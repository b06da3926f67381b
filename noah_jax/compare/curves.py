"""Draws the accuracy of finished trainings over their epochs."""

import io
from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from noah_jax.compare.summary import Record
from noah_jax.compare.variants import HEADS
from noah_jax.pictures.fonts import fonts

_NAMES = {"linear": "linear head", "noah": "NOAH head"}
_MEASURES = {"top1": "Top-1 accuracy", "map": "Mean average precision"}
_MOST_COLUMNS = 3


def draw_curves(runs: Sequence[Record]) -> bytes:
    """Returns the figure of `curves_figure` as PNG."""
    png = io.BytesIO()
    curves_figure(runs).savefig(png)
    return png.getvalue()


def curves_figure(runs: Sequence[Record]) -> Figure:
    """Draws the measure over the epochs: a panel for each configuration, a colour for each head.

    A thin line is one training, the thick line of a head their mean.

    Args:
      runs: All trainings, each with its configuration, head, model and curve.
    """
    configs = list(dict.fromkeys(run["config"] for run in runs))
    columns = min(_MOST_COLUMNS, len(configs))
    rows = -(-len(configs) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.7 * rows + 0.5), dpi=120)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    FigureCanvasAgg(figure)
    titles = _titles(configs, runs)
    families = fonts().families("".join(titles))
    for position, (config, title) in enumerate(zip(configs, titles, strict=True), start=1):
        own = [run for run in runs if run["config"] == config]
        axis = figure.add_subplot(rows, columns, position)
        _draw_panel(axis, own)
        axis.set_title(title, fontfamily=families, parse_math=False)
    measures = " and ".join(sorted({_MEASURES[run["measure"]] for run in runs}, reverse=True))
    figure.suptitle(f"{measures} on the evaluation images during training", fontweight="bold")
    return figure


def _titles(configs: Sequence[str], runs: Sequence[Record]) -> list[str]:
    """Names each configuration by its backbone, and by its file too where two have the same."""
    models = [next(run["model"] for run in runs if run["config"] == config) for config in configs]
    backbones = [model.removeprefix("noah_") for model in models]
    times = Counter(backbones)
    return [
        backbone if times[backbone] == 1 else f"{backbone} ({config})"
        for backbone, config in zip(backbones, configs, strict=True)
    ]


def _draw_panel(axis: Axes, runs: Sequence[Record]) -> None:
    for head in HEADS:
        curves = [run["curve"] for run in runs if run["head"] == head]
        if not curves:
            continue
        colour = f"C{HEADS.index(head)}"
        seeds = f"{len(curves)} seed{'s' if len(curves) > 1 else ''}"
        label = f"{_NAMES[head]} ({'mean of ' if len(curves) > 1 else ''}{seeds})"
        # Trainings that stopped at other steps have no mean.
        mean = len({tuple(epoch for epoch, _ in curve) for curve in curves}) == 1
        for curve in curves:
            thin = {"linewidth": 1, "alpha": 0.45} if mean and len(curves) > 1 else {"marker": "."}
            axis.plot(*zip(*curve, strict=True), color=colour, **thin)
        if mean:
            epochs, values = np.mean(curves, axis=0).T
            axis.plot(epochs, values, color=colour, linewidth=2, marker="o", markersize=4)
        axis.plot([], [], color=colour, linewidth=2, marker="o", markersize=4, label=label)
    last = max(epoch for run in runs for epoch, _ in run["curve"])
    axis.set_xlim(0, max(1.0, 1.03 * last))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("epoch")
    axis.set_ylabel(f"{_MEASURES[runs[0]['measure']]} (%)")
    axis.grid(color="#d0d7de", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower right", frameon=False)
