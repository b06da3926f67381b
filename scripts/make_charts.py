"""Draws the charts of docs/figures/ from the tables of docs/results.md and docs/gpu.md.

    python scripts/make_charts.py
    python scripts/make_charts.py --output /tmp/charts

No number stands here: change a table, then run this again. The last lines of a chart say whether
its numbers were measured, published, counted or predicted. A chart has a panel of its own behind
it, so it can be read on a light and on a dark page.
"""

from noah_jax.cli import Parser, run, show_help

if __name__ == "__main__":
    show_help(__doc__)  # before the imports that take seconds

import argparse
import dataclasses
import html
import math
import pathlib
import re
import sys
import textwrap
from collections.abc import Sequence

_DOCS = pathlib.Path(__file__).parent.parent / "docs"
_WIDTH = 600
_MARGIN = 20
_NOTE = 74  # characters of a line of the notes

_STYLE = """
  svg { font-family: system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
  .panel { fill: #ffffff; stroke: #d0d4da; }
  text { fill: #1f2933; font-size: 15px; }
  .title { font-size: 17px; font-weight: 600; }
  .small { font-size: 14px; fill: #52606d; }
  .grid { stroke: #d0d4da; stroke-width: 1; }
  .linear { fill: #8a94a0; stroke: #8a94a0; }
  .noah { fill: #2f6fde; stroke: #2f6fde; }
  .other { fill: #a9c4f5; stroke: #a9c4f5; }
  .pytorch { fill: #e8a25c; stroke: #e8a25c; }
  .predicted { fill: none; stroke: #2f6fde; stroke-dasharray: 4 3; }
  .way { stroke: #2f6fde; stroke-width: 1.8; fill: none; }
  .tip { fill: #2f6fde; }
  .whisker { stroke-width: 3; }
  @media (prefers-color-scheme: dark) {
    .panel { fill: #1b1f27; stroke: #3b4350; }
    text { fill: #e6e9ee; }
    .small { fill: #aab4c0; }
    .grid { stroke: #3b4350; }
    .linear { fill: #8d97a5; stroke: #8d97a5; }
    .noah { fill: #6ea2ff; stroke: #6ea2ff; }
    .other { fill: #3d5f9e; stroke: #3d5f9e; }
    .pytorch { fill: #b8722f; stroke: #b8722f; }
    .predicted { stroke: #6ea2ff; }
    .way { stroke: #6ea2ff; }
    .tip { fill: #6ea2ff; }
  }
"""

Row = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Bar:
    """A bar: what it is of, its value, how the value is written, and its class in the style."""

    name: str
    value: float
    text: str
    kind: str


def charts() -> dict[str, str]:
    """Returns the charts as SVG, by the names of their files."""
    return {
        "head_cost_h100.svg": head_cost_chart(),
        "train_step_h100.svg": train_step_chart(),
        "accuracy_cost.svg": accuracy_chart(),
        "small_models.svg": small_models_chart(),
    }


def head_cost_chart() -> str:
    """Draws the milliseconds of heads alone on an H100, measured and predicted."""
    # The column of the table, the bar's name and its class.
    columns = (
        ("linear", "linear", "linear"),
        ('kernel ("auto")', "NOAH, kernel", "noah"),
        ('chunks ("xla")', "NOAH, chunks", "other"),
        ('as written ("reference")', "NOAH, as written", "other"),
        ("PyTorch", "PyTorch", "pytorch"),
        ("torch.compile", "torch.compile", "pytorch"),
    )
    predicted = {row["map"]: row["predicted now"] for row in table("gpu.md", "predicted now")}
    groups = []
    for row in table("results.md", 'kernel ("auto")'):
        bars = []
        for column, name, kind in columns:
            if row[column] == "-":
                continue
            both = row[column].split(",")[0].split("/")[1].strip()
            bars.append(Bar(name, float(both), both, kind))
            now = predicted.get(row["map"].split(",")[0])
            if kind == "noah" and now:
                bars.append(Bar("new blocks, predicted", float(now), now, "predicted"))
        groups.append((row["map"].replace("x", "\u00d7"), bars))
    return _bar_chart(
        "The head alone, forward and backward, in milliseconds",
        groups,
        [
            provenance("On an NVIDIA H100"),
            "Dashed: predicted by the model of the kernels, and not timed yet.",
        ],
    )


def train_step_chart() -> str:
    """Draws the images a second of whole train steps on an H100."""
    kinds = {
        "linear": "linear",
        "NOAH, kernel": "noah",
        "NOAH, chunks": "other",
        "timm + torch.compile, linear": "pytorch",
        "timm + torch.compile, NOAH": "pytorch",
    }
    groups = []
    for row in table("results.md", "timm + torch.compile, NOAH"):
        bars = []
        for name, kind in kinds.items():
            text = row[name].split(", ")[0]
            if text != "-":
                short = name.replace("torch.compile", "compile")
                bars.append(Bar(short, float(text.replace(",", "")), text, kind))
        groups.append((row["backbone"], bars))
    return _bar_chart(
        "Whole train steps, in images a second",
        groups,
        [provenance("On an NVIDIA H100")],
    )


def accuracy_chart() -> str:
    """Draws ImageNet accuracy over multiply-adds, an arrow from the linear head to NOAH."""
    cost = {row["backbone"]: row for row in table("results.md", "NOAH", "")}
    points = []
    for row in table("results.md", "recipe"):
        if counted := cost.get(row["backbone"]):
            before = float(counted["linear"]), float(row["linear"])
            after = float(counted["NOAH"]), float(row["NOAH"])
            points.append((row["backbone"].removesuffix("_patch16_224"), before, after))
    return _arrow_chart(points)


def small_models_chart() -> str:
    """Draws the accuracy of the small models with both heads, and how much their seeds differ."""
    title, left, step = "Small models, accuracy on the embedded sample", 150, 30
    rows = []
    for row in table("results.md", "model", "seeds", "top-1"):
        name = row["model"].split(" ")[0]
        mean, deviation = map(float, re.findall(r"\d+\.\d+", row["top-1"]))
        rows.append((name, mean, deviation))
    low = 5 * math.floor(min(mean - deviation for _, mean, deviation in rows) / 5)
    high = 5 * math.ceil(max(mean + deviation for _, mean, deviation in rows) / 5)
    scale = (_WIDTH - 2 * _MARGIN - 16 - left) / (high - low)
    bottom = 60 + step * len(rows)
    parts = [_text(_MARGIN, 34, title, "title")]
    for value in range(low, high + 1, 5):
        x = left + (value - low) * scale
        parts.append(f'<path class="grid" d="M {x:.1f} 56 V {bottom}"/>')
        parts.append(_text(x, bottom + 20, f"{value} %", "small", anchor="middle"))
    for number, (name, mean, deviation) in enumerate(rows):
        kind = "noah" if name.startswith("noah_") else "linear"
        head = "NOAH" if kind == "noah" else "linear"
        x, y = left + (mean - low) * scale, 60 + step * (number + 0.5)
        whisker = deviation * scale
        short = name.removeprefix("noah_").split("_")[0]
        parts += [
            _text(left - 12, y + 5, f"{short}, {head}", "small", anchor="end"),
            f'<path class="{kind} whisker" d="M {x - whisker:.1f} {y} H {x + whisker:.1f}"/>',
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y}" r="5.5"/>',
        ]
    notes = [
        "Dot: mean of the seeds. Line: their standard deviation.",
        provenance("Small models, both heads"),
    ]
    return _svg(title, parts, bottom + 24, notes)


def table(page: str, *columns: str) -> list[Row]:
    """Returns the rows of the first table of a page that has all these columns."""
    text = (_DOCS / page).read_text(encoding="utf-8")
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        names, _, *rows = [
            [cell.strip() for cell in line.strip()[1:-1].split("|")] for line in block.splitlines()
        ]
        if set(columns) <= set(names):
            return [dict(zip(names, row, strict=True)) for row in rows]
    raise ValueError(f"{page} has no table with the columns {', '.join(columns)}")


def provenance(heading: str) -> str:
    """Returns what the first line below a heading of the results says of its numbers."""
    text = (_DOCS / "results.md").read_text(encoding="utf-8")
    found = re.search(rf"^#+ {re.escape(heading)}\n+\*([^*]+)\*$", text, re.MULTILINE)
    if found is None:
        raise ValueError(f"results.md says nothing of its numbers below {heading!r}")
    return " ".join(found[1].split())


def _bar_chart(
    title: str, groups: Sequence[tuple[str, Sequence[Bar]]], notes: Sequence[str]
) -> str:
    """Draws groups of horizontal bars on one scale, which starts at 0."""
    left, right, step, height = 196, 60, 22, 14
    largest = max(bar.value for _, bars in groups for bar in bars)
    scale = (_WIDTH - _MARGIN - left - right) / largest
    parts, y = [_text(_MARGIN, 34, title, "title")], 50
    for name, bars in groups:
        y += 22
        parts.append(_text(_MARGIN, y, name))
        y += 8
        top = y
        for bar in bars:
            width = max(2, bar.value * scale)
            middle = y + step / 2
            parts += [
                _text(left - 8, middle + 5, bar.name, "small", anchor="end"),
                f'<rect class="{bar.kind}" x="{left}" y="{middle - height / 2:.1f}"'
                f' width="{width:.1f}" height="{height}"/>',
                _text(left + width + 8, middle + 5, bar.text, "small"),
            ]
            y += step
        parts.append(f'<path class="grid" d="M {left - 0.5} {top} V {y}"/>')
        y += 6
    return _svg(title, parts, y, notes)


def _arrow_chart(points: Sequence[tuple[str, tuple[float, float], tuple[float, float]]]) -> str:
    """Draws an arrow from the linear head to NOAH for each backbone."""
    title = "ImageNet accuracy against arithmetic"
    left, top, bottom = 54, 84, 480
    costs = [point[0] for _, *both in points for point in both]
    accuracies = [point[1] for _, *both in points for point in both]
    low, high = 5 * math.floor(min(accuracies) / 5), 5 * math.ceil(max(accuracies) / 5)
    first, last = math.log10(min(costs)) - 0.06, math.log10(max(costs)) + 0.1

    def place(point: tuple[float, float]) -> tuple[float, float]:
        along = (math.log10(point[0]) - first) / (last - first)
        up = (point[1] - low) / (high - low)
        return left + along * (_WIDTH - _MARGIN - left), bottom - up * (bottom - top)

    parts = [_text(_MARGIN, 34, title, "title"), _text(_MARGIN, 62, "top-1, %", "small")]
    for value in range(low, high + 1, 5):
        _, y = place((1, value))
        parts.append(f'<path class="grid" d="M {left} {y:.1f} H {_WIDTH - _MARGIN}"/>')
        parts.append(_text(left - 8, y + 5, str(value), "small", anchor="end"))
    for value in (0.1, 0.3, 1, 3, 10):
        x, _ = place((value, low))
        parts.append(f'<path class="grid" d="M {x:.1f} {bottom} V {bottom + 5}"/>')
        parts.append(_text(x, bottom + 22, f"{value:g}", "small", anchor="middle"))
    parts.append(
        _text(_WIDTH - _MARGIN, bottom + 44, "billions of multiply-adds an image", "small", "end")
    )
    ends = [(name, place(before), place(after)) for name, before, after in points]
    for _, (x1, y1), (x2, y2) in ends:
        parts.append(f'<circle class="linear" cx="{x1:.1f}" cy="{y1:.1f}" r="3.5"/>')
        parts.append(
            f'<path class="way" d="M {x1:.1f} {y1:.1f} L {x2:.1f} {y2:.1f}"'
            ' marker-end="url(#tip)"/>'
        )
    parts += _labels(ends)
    notes = [
        "Grey: linear head. Arrow: to NOAH.",
        provenance("ImageNet"),
        provenance("In arithmetic"),
    ]
    return _svg(title, parts, bottom + 50, notes)


def _labels(
    ends: Sequence[tuple[str, tuple[float, float], tuple[float, float]]],
) -> list[str]:
    """Writes each name beside its arrow, on the first side where nothing else is."""
    taken = [
        (min(x1, x2) - 4, min(y1, y2) - 4, max(x1, x2) + 4, max(y1, y2) + 4)
        for _, (x1, y1), (x2, y2) in ends
    ]
    parts = []
    for name, (x1, y1), (x2, y2) in ends:
        width = 7.4 * len(name)
        places = [
            (max(x1, x2) + 8, y2 + 5),
            (min(x1, x2) - 8 - width, y2 + 5),
            (min(x1, x2) - 8 - width, y1 + 5),
            (max(x1, x2) + 8, y1 + 5),
            (x2 - width / 2, y2 - 12),
            (x2 - width / 2, y1 + 20),
        ]
        boxes = [(x, y - 11, x + width, y + 3) for x, y in places]
        free = [
            i
            for i, box in enumerate(boxes)
            if box[0] >= 58 and box[2] <= _WIDTH - 8 and not any(_meet(box, o) for o in taken)
        ]
        chosen = free[0] if free else 0
        taken.append(boxes[chosen])
        parts.append(_text(*places[chosen], name, "small"))
    return parts


def _meet(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    attributes = f' class="{kind}"' if kind else ""
    if anchor != "start":
        attributes += f' text-anchor="{anchor}"'
    return f'<text{attributes} x="{x:.4g}" y="{y:.4g}">{html.escape(words, quote=False)}</text>'


def _svg(title: str, parts: Sequence[str], height: int, notes: Sequence[str]) -> str:
    """Puts the parts on a panel, and the notes below them."""
    lines = [line for note in notes for line in textwrap.wrap(note, _NOTE)]
    written = [
        _text(_MARGIN, height + 20 * number, line, "small") for number, line in enumerate(lines, 1)
    ]
    height += 20 * len(lines) + 16
    panel = (
        f'<rect class="panel" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="10"/>'
    )
    body = "\n".join(f"  {part}" for part in [panel, *parts, *written])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img"'
        f' aria-label="{html.escape(title)}">\n'
        f"  <style>{_STYLE}  </style>\n"
        '  <defs><marker id="tip" markerWidth="5" markerHeight="5" refX="3" refY="2.5"'
        ' orient="auto"><path class="tip" d="M 0 0 L 5 2.5 L 0 5 z"/></marker></defs>\n'
        f"{body}\n</svg>\n"
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python scripts/make_charts.py", description=__doc__)
    parser.add_argument(
        "--output",
        default=_DOCS / "figures",
        type=pathlib.Path,
        metavar="DIR",
        help="the folder to write to",
    )
    return parser


def _main(arguments: argparse.Namespace) -> int:
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, chart in charts().items():
        (arguments.output / name).write_text(chart, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run(_main, _parser()))
