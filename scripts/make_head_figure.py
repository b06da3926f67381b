"""Draws docs/images/head.svg: how the NOAH head makes the logit of one class.

    python scripts/make_head_figure.py
    python scripts/make_head_figure.py --output /tmp/head.svg

The figure has a panel of its own behind it, so it can be read on a light and on a dark page. Its
small maps show a worked example: the attention is the softmax of the scores, and the
contributions are attention times values, whose sum is printed.
"""

from noah_jax.cli import Parser, run, show_help

if __name__ == "__main__":
    show_help(__doc__)  # before the imports that take seconds

import argparse
import pathlib
import sys

import numpy as np

_OUTPUT = pathlib.Path(__file__).parent.parent / "docs" / "images" / "head.svg"
_CELL = 20
_SCORES = np.array([[-1, 0, -1, -2], [0, 2, 3, 0], [-1, 1, 2, -1], [-2, -1, 0, -2]], float)
_VALUES = np.array([[0, 1, 0, -1], [1, 3, 4, 1], [0, 2, 3, 0], [-1, 0, 1, -2]], float)

_STYLE = """
  svg { font-family: system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
  .panel { fill: #ffffff; stroke: #d0d4da; }
  text { fill: #1f2933; font-size: 16px; }
  .small { font-size: 14.5px; fill: #52606d; }
  .cell { stroke: #ffffff; }
  .empty { fill: #e8ebef; }
  .query { fill: #2f6fde; }
  .value { fill: #d9730d; }
  .both { fill: #2e8b57; }
  .line { stroke: #52606d; fill: none; stroke-width: 1.6; }
  .head { fill: #52606d; }
  @media (prefers-color-scheme: dark) {
    .panel { fill: #1b1f27; stroke: #3b4350; }
    text { fill: #e6e9ee; }
    .small { fill: #aab4c0; }
    .cell { stroke: #1b1f27; }
    .empty { fill: #2c323d; }
    .query { fill: #6ea2ff; }
    .value { fill: #ffa14f; }
    .both { fill: #58c98b; }
    .line { stroke: #aab4c0; }
    .head { fill: #aab4c0; }
  }
"""


def figure() -> str:
    """Returns the figure as SVG."""
    attention = np.exp(_SCORES) / np.exp(_SCORES).sum()
    contributions = attention * _VALUES
    parts = [
        '<rect class="panel" x="0.5" y="0.5" width="599" height="569" rx="10"/>',
        *_feature_map(20, 128),
        _text(20, 312, "channels of"),
        _text(20, 332, "one block:"),
        _text(20, 354, "query part (blue),", "small"),
        _text(20, 373, "value part (orange)", "small"),
        _arrow("M 150 156 C 172 136, 172 104, 196 102"),
        _arrow("M 150 240 C 172 262, 172 290, 196 292"),
        _text(200, 44, "scores of class c"),
        *_map(200, 60, _SCORES, "query"),
        _text(200, 162, "1x1 convolution", "small"),
        _arrow("M 286 100 H 394"),
        _text(302, 90, "softmax", "small"),
        _text(302, 120, "over the", "small"),
        _text(302, 138, "positions", "small"),
        _text(400, 44, "attention p"),
        *_map(400, 60, attention, "query"),
        _text(490, 106, "sums to 1", "small"),
        _text(200, 236, "values of class c"),
        *_map(200, 252, _VALUES, "value"),
        _text(200, 354, "1x1 convolution", "small"),
        _arrow("M 440 148 V 272"),
        _arrow("M 286 292 H 420"),
        '<circle class="line" cx="440" cy="292" r="13"/>',
        _arrow("M 435 287 L 445 297", head=False),
        _arrow("M 445 287 L 435 297", head=False),
        _text(464, 289, "position by", "small"),
        _text(464, 307, "position", "small"),
        _arrow("M 440 310 V 384"),
        *_map(400, 392, contributions, "both"),
        _text(400, 496, "contributions"),
        _arrow("M 392 432 H 276"),
        _text(306, 422, "sum over", "small"),
        _text(306, 452, "positions", "small"),
        _text(120, 428, "output of block n:"),
        _text(120, 450, f"{contributions.sum():.2f}"),
        _arrow("M 140 462 V 520"),
        _text(154, 496, "sum over the N blocks", "small"),
        _text(120, 544, "logit of class c"),
    ]
    body = "\n".join(f"  {part}" for part in parts)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 570" role="img"'
        ' aria-label="How the NOAH head makes the logit of one class">\n'
        f"  <style>{_STYLE}  </style>\n"
        '  <defs><marker id="tip" markerWidth="9" markerHeight="9" refX="7" refY="4.5"'
        ' orient="auto"><path class="head" d="M 0 0.5 L 8 4.5 L 0 8.5 z"/></marker></defs>\n'
        f"{body}\n</svg>\n"
    )


def _feature_map(x: int, y: int) -> list[str]:
    """Draws the channels of one block as sheets, half of them the query's."""
    parts = [
        _text(x, 92, "last feature map"),
        _text(x, 112, "H x W positions", "small"),
    ]
    for i in range(8):
        kind = "query" if i < 4 else "value"
        parts.append(
            f'<path class="cell {kind}" fill-opacity="{0.95 - 0.1 * (i % 4):.2f}"'
            f' d="M {x + 36} {y + 18 * i} h 88 l -36 36 h -88 z"/>'
        )
    return parts


def _map(x: int, y: int, numbers: np.ndarray, kind: str) -> list[str]:
    """Draws a number for each position: the larger, the fuller the colour."""
    low, high = numbers.min(), numbers.max()
    parts = []
    for (row, column), number in np.ndenumerate(numbers):
        place = f'x="{x + _CELL * column}" y="{y + _CELL * row}" width="{_CELL}" height="{_CELL}"'
        opacity = (number - low) / (high - low)
        parts.append(f'<rect class="cell empty" {place}/>')
        parts.append(f'<rect class="cell {kind}" fill-opacity="{opacity:.2f}" {place}/>')
    return parts


def _text(x: int, y: int, words: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text{attribute} x="{x}" y="{y}">{words}</text>'


def _arrow(path: str, *, head: bool = True) -> str:
    tip = ' marker-end="url(#tip)"' if head else ""
    return f'<path class="line" d="{path}"{tip}/>'


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python scripts/make_head_figure.py", description=__doc__)
    parser.add_argument(
        "--output", default=_OUTPUT, type=pathlib.Path, metavar="FILE.svg", help="the file to write"
    )
    return parser


def _main(arguments: argparse.Namespace) -> int:
    arguments.output.write_text(figure())
    return 0


if __name__ == "__main__":
    sys.exit(run(_main, _parser()))
