"""Formats the rows of a comparison as Markdown and as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from noah_jax.compare.records import Record

# What is measured, as the tables call it, by its key in a run's results.
MEASURES = {"top1": "top-1", "map": "mAP"}


def format_table(rows: Sequence[Record]) -> str:
    """Formats the rows as a Markdown table, with a line below on what its columns are."""
    measures = sorted({MEASURES[row["measure"]] for row in rows}, reverse=True)
    references = {row["reference"] for row in rows if "reference" in row}
    reference = references.pop() if len(references) == 1 else "the first"
    corrected = any("p_holm" in row.get("difference", {}) for row in rows)
    columns = [
        *("model", "setting" if any(row["setting"] for row in rows) else "head", "parameters"),
        *("FLOPs", "ms a step", "seeds", " or ".join(measures)),
        f"difference from {reference}, 95 % interval",
        *(["p (Holm)"] if corrected else []),
    ]
    lines = [_line(columns), "|---" * len(columns) + "|"]
    lines += [_line(_cells(row, corrected)) for row in rows]
    return "\n".join([*lines, "", _notes(rows, corrected)])


def format_csv(rows: Sequence[Record]) -> str:
    """Formats the rows as CSV, with a column for each swept key and each number by itself."""
    keys = list(dict.fromkeys(key for row in rows for key in row["setting"]))
    text = io.StringIO()
    columns = [
        *("config", "model", "head", *keys, "num_params", "multiply_adds", "step_ms", "seeds"),
        *("measure", "mean", "std", "difference", "low", "high", "p", "p_holm"),
    ]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {
                **row,
                **row["setting"],
                "seeds": " ".join(map(str, row["seeds"])),
                **_difference_columns(row.get("difference")),
            }
        )
    return text.getvalue()


def millions(multiply_adds: int | None) -> str:
    """Formats multiply-adds as papers write FLOPs, such as "4.09 G"."""
    if multiply_adds is None:
        return "-"
    unit, size = ("G", 1e9) if multiply_adds >= 1e9 else ("M", 1e6)
    return f"{multiply_adds / size:.2f} {unit}"


def _cells(row: Record, corrected: bool) -> list[str]:
    spread = "" if row["std"] is None else f" ± {row['std']:.2f}"
    step_ms = "-" if row["step_ms"] is None else f"{row['step_ms']:.1f}"
    cells = [
        *(row["model"], row["label"], f"{row['num_params']:,}", millions(row["multiply_adds"])),
        *(step_ms, str(len(row["seeds"])), f"{row['mean']:.2f}{spread} %"),
    ]
    difference = row.get("difference")
    if difference is None:
        return [*cells, *([""] * (2 if corrected else 1))]
    mean, half = difference["mean"], difference["half_width"]
    interval = "" if half is None else f" ({mean - half:+.2f} to {mean + half:+.2f})"
    cells.append(f"{mean:+.2f}{interval}")
    if corrected:
        p = difference.get("p_holm")
        cells.append("" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}")
    return cells


def _notes(rows: Sequence[Record], corrected: bool) -> str:
    notes = [
        "FLOPs: multiply-adds for one image.",
        "ms a step: median over each run's log (`metrics.jsonl`), input included.",
    ]
    if min(len(row["seeds"]) for row in rows) == 1:
        notes.append("One seed gives no standard deviation and no interval.")
    if corrected:
        notes.append(
            "p: paired t-test, corrected by Holm over the differences of a model; the intervals are"
            " not corrected."
        )
    return " ".join(notes)


def _difference_columns(difference: Mapping[str, Any] | None) -> dict[str, Any]:
    if difference is None:
        return {}
    mean, half = difference["mean"], difference["half_width"]
    interval = {} if half is None else {"low": mean - half, "high": mean + half}
    return {
        "difference": mean,
        **interval,
        "p": difference["p"],
        "p_holm": difference.get("p_holm"),
    }


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"
