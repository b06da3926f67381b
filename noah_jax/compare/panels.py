"""Makes the panels of a comparison's figures, one for each configuration, and their colours."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from noah_jax.compare.records import Record
from noah_jax.pictures.fonts import fonts

MEASURES = {"top1": "Top-1 accuracy", "map": "Mean average precision"}
_MARKERS = "os^Dv<>Phd*X"
_LEGEND_INCHES = 2.3  # the width of an entry of the legend
_FEW = 10  # The colours of "tab10"; "tab20" has twice as many.


class Panel(NamedTuple):
    """The place of a configuration in a figure.

    Attributes:
      config: The configuration, as the user named it.
      axes: Where to draw, one beside the other.
    """

    config: str
    axes: list[Axes]


def make_panels(
    records: Sequence[Record], title: str, *, columns: int, each: int = 1
) -> tuple[Figure, list[Panel]]:
    """Makes a figure with a panel for each configuration, named by its backbone.

    Args:
      records: Trainings or rows.
      title: The title of the figure.
      columns: How many panels stand beside each other at most.
      each: How many axes a panel has.
    """
    configs = list(dict.fromkeys(record["config"] for record in records))
    columns = min(columns, len(configs))
    rows = -(-len(configs) // columns)
    figure = Figure(figsize=(4.6 * columns * each, 3.7 * rows + 0.8), dpi=120)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    FigureCanvasAgg(figure)
    titles = _titles(configs, records)
    families = fonts().families("".join(titles))
    panels = []
    for number, (config, name) in enumerate(zip(configs, titles, strict=True)):
        axes = []
        for offset in range(each):
            axis = figure.add_subplot(rows, columns * each, number * each + offset + 1)
            axis.set_title(name, fontfamily=families, parse_math=False)
            axis.grid(color="#d0d7de", linewidth=0.6)
            axis.set_axisbelow(True)
            axis.spines[["top", "right"]].set_visible(False)
            axes.append(axis)
        panels.append(Panel(config, axes))
    figure.suptitle(title, fontweight="bold")
    return figure, panels


class Style(NamedTuple):
    """How a contender is drawn in all figures of a comparison."""

    colour: tuple[float, float, float]
    marker: str


def styles(records: Sequence[Record]) -> dict[str, Style]:
    """Returns a colour and a marker for each label."""
    labels = list(dict.fromkeys(record["label"] for record in records))
    palette = colormaps["tab10" if len(labels) <= _FEW else "tab20"].colors  # type: ignore[attr-defined]
    return {
        label: Style(palette[number % len(palette)], _MARKERS[number % len(_MARKERS)])
        for number, label in enumerate(labels)
    }


def add_legend(figure: Figure, style_of: Mapping[str, Style]) -> None:
    """Adds the legend of all panels below them, because many contenders would hide the lines."""
    handles = [
        Line2D([], [], color=style.colour, marker=style.marker, linewidth=2, label=label)
        for label, style in style_of.items()
    ]
    legend = figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), max(1, int(figure.get_figwidth() / _LEGEND_INCHES))),
        frameon=False,
    )
    families = fonts().families("".join(style_of))
    for text in legend.get_texts():
        text.set(fontfamily=families, parse_math=False)


def measures(records: Sequence[Record]) -> str:
    """Names what is measured."""
    return " and ".join(sorted({MEASURES[record["measure"]] for record in records}, reverse=True))


def as_png(figure: Figure) -> bytes:
    """Returns a figure as PNG."""
    png = io.BytesIO()
    figure.savefig(png)
    return png.getvalue()


def _titles(configs: Sequence[str], records: Sequence[Record]) -> list[str]:
    """Names each configuration by its backbone, and by its file too where two have the same."""
    models = [next(r["model"] for r in records if r["config"] == config) for config in configs]
    backbones = [model.removeprefix("noah_") for model in models]
    times = Counter(backbones)
    return [
        backbone if times[backbone] == 1 else f"{backbone} ({config})"
        for backbone, config in zip(backbones, configs, strict=True)
    ]
