"""Summarises finished trainings: means, paired differences with intervals, table and curves."""

import statistics
import warnings
from collections.abc import Sequence
from typing import Any

# What is measured, as the table calls it, by its key in a run's results.
MEASURES = {"top1": "top-1", "map": "mAP"}

# One training, or one row of the table, as compare.json has it.
Record = dict[str, Any]


def paired_difference(reference: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Computes the mean of the paired differences and half the width of its 95 % interval.

    The interval is that of Student's paired t-test; it is NaN for a single pair.

    Args:
      reference: Values of the reference, one for each seed.
      other: Values of the other head for the same seeds.
    """
    from scipy.stats import ttest_rel

    with warnings.catch_warnings():
        # A single pair, or differences that are all equal.
        warnings.simplefilter("ignore", RuntimeWarning)
        low, high = ttest_rel(other, reference).confidence_interval(0.95)
    mean = statistics.fmean(b - a for a, b in zip(reference, other, strict=True))
    return {"mean": mean, "half_width": float(high - low) / 2}


def summarise(runs: Sequence[Record], heads: Sequence[str]) -> list[Record]:
    """Makes one row for every configuration and head.

    Args:
      runs: All trainings, each with its configuration, head, seed and results.
      heads: The heads; differences are from the first.
    """
    rows: list[Record] = []
    for config in dict.fromkeys(run["config"] for run in runs):
        reference: list[float] = []
        for head in heads:
            own = [run for run in runs if run["config"] == config and run["head"] == head]
            values = [run["value"] for run in own]
            row: Record = {
                "config": config,
                "head": head,
                "model": own[0]["model"],
                "num_params": own[0]["num_params"],
                "seeds": [run["seed"] for run in own],
                "measure": own[0]["measure"],
                "values": values,
                "mean": statistics.fmean(values),
                "std": statistics.stdev(values) if len(own) > 1 else float("nan"),
            }
            if head == heads[0]:
                reference = values
            else:
                row["difference"] = paired_difference(reference, values)
            rows.append(row)
    return rows


def format_table(rows: Sequence[Record], heads: Sequence[str]) -> str:
    """Formats the rows as a Markdown table."""
    measures = sorted({MEASURES[row["measure"]] for row in rows}, reverse=True)
    lines = [
        f"| model | parameters | seeds | {' or '.join(measures)} | difference from {heads[0]},"
        " 95 % interval |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        difference = ""
        if "difference" in row:
            mean, half = row["difference"]["mean"], row["difference"]["half_width"]
            difference = f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"
        lines.append(
            f"| {row['model']} | {row['num_params']:,} | {len(row['seeds'])}"
            f" | {row['mean']:.2f} ± {row['std']:.2f} % | {difference} |"
        )
    return "\n".join(lines).replace("± nan ", "").replace(" (+nan to +nan)", "")
