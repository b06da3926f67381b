"""The table of a probe: on the screen and as Markdown, CSV and JSON."""

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from noah_jax.files import write_text

# A row as probe.json has it.
Row = dict[str, Any]

_COLUMNS = ("head", "parameters", "learning_rate", "top1", "std", "seeds", "seconds")


def head_row(
    head: str,
    *,
    parameters: int,
    recipe: Mapping[str, Any],
    learning_rate: float,
    held_out: Mapping[str, float],
    values: Sequence[float],
    seeds: Sequence[int],
    seconds: float,
    folders: Sequence[str],
) -> Row:
    """Makes the row of a head.

    Args:
      head: Name of the head.
      parameters: Number of its parameters.
      recipe: Its recipe, as JSON holds it.
      learning_rate: The chosen learning rate.
      held_out: Mean top-1 on held-out training images by learning rate; empty if nothing was
        chosen.
      values: Top-1 on the evaluation split for each seed, in percent.
      seeds: The seeds.
      seconds: Seconds of all its trainings, compilation included.
      folders: The folders of the trained models.
    """
    return {
        "head": head,
        "parameters": parameters,
        "learning_rate": learning_rate,
        "top1": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "values": list(values),
        "seeds": list(seeds),
        "seconds": round(seconds, 1),
        "held_out": dict(held_out),
        "recipe": dict(recipe),
        "folders": list(folders),
    }


def neighbour_row(neighbours: int, *, temperature: float, top1: float, seconds: float) -> Row:
    """Makes the row of a number of neighbours."""
    return {
        "head": f"k-NN, k = {neighbours}",
        "parameters": 0,
        "learning_rate": None,
        "top1": top1,
        "std": None,
        "values": [top1],
        "seeds": [],
        "seconds": round(seconds, 1),
        "neighbours": neighbours,
        "temperature": temperature,
    }


def format_table(rows: Sequence[Row]) -> str:
    """Formats the rows as a Markdown table."""
    lines = [
        "| head | parameters | learning rate | top-1 | seconds |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        std = row["std"]
        spread = "" if std is None or math.isnan(std) else f" ± {std:.2f}"
        rate = "" if row["learning_rate"] is None else f"{row['learning_rate']:g}"
        lines.append(
            f"| {row['head']} | {row['parameters']:,} | {rate} | {row['top1']:.2f}{spread} % |"
            f" {row['seconds']:.1f} |"
        )
    return "\n".join(lines)


def write_results(folder: epath.Path, rows: Sequence[Row], about: Mapping[str, Any]) -> None:
    """Writes `probe.json`, `probe.csv` and `probe.md`, each whole.

    Args:
      folder: The folder, which exists.
      rows: The rows.
      about: What was probed on what, a part of `probe.json`.

    Raises:
      WriteError: If a file cannot be written.
    """
    write_text(folder / "probe.json", json.dumps({**about, "rows": list(rows)}, indent=2) + "\n")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in rows:
        values = {**row, "seeds": len(row["seeds"])}
        writer.writerow("" if values[key] is None else values[key] for key in _COLUMNS)
    write_text(folder / "probe.csv", text.getvalue())
    write_text(folder / "probe.md", format_table(rows) + "\n")
