"""Summarises finished trainings: means, paired differences with intervals, corrected p-values."""

import statistics
import warnings
from collections.abc import Sequence

from noah_jax.compare.records import Record


def summarise(runs: Sequence[Record]) -> list[Record]:
    """Makes one row for every configuration and contender.

    Args:
      runs: All trainings as compare.json has them, see `noah_jax.compare.program`.

    Returns:
      The rows in the order of the runs. A number that one seed cannot give is `None`. All but the
      first contender of a configuration have its label in `reference` and, if they share a seed
      with it, a `difference`: of the seeds that both have, see `paired_difference`. Where there are
      more than two contenders it has `p_holm` too, corrected over those of the configuration.
    """
    rows: list[Record] = []
    for config in dict.fromkeys(run["config"] for run in runs):
        of_config = [run for run in runs if run["config"] == config]
        by_label: dict[str, dict[int, Record]] = {}
        for run in of_config:
            by_label.setdefault(run["label"], {})[run["seed"]] = run
        own = [_row(list(by_seed.values())) for by_seed in by_label.values()]
        reference = next(iter(by_label))
        for row in own[1:]:
            row["reference"] = reference
            seeds = [seed for seed in by_label[reference] if seed in by_label[row["label"]]]
            if seeds:
                row["difference"] = paired_difference(
                    [by_label[reference][seed]["value"] for seed in seeds],
                    [by_label[row["label"]][seed]["value"] for seed in seeds],
                )
        if len(own) > 2:
            _correct(own)
        rows += own
    return rows


def _row(runs: Sequence[Record]) -> Record:
    """Summarises the seeds of one contender."""
    values = [run["value"] for run in runs]
    times = [run["step_ms"] for run in runs if run["step_ms"] is not None]
    copied = ("config", "head", "setting", "label", "model", "num_params", "multiply_adds")
    return {
        **{key: runs[0][key] for key in copied},
        "step_ms": statistics.median(times) if times else None,
        "seeds": [run["seed"] for run in runs],
        "measure": runs[0]["measure"],
        "values": values,
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
    }


def paired_difference(
    reference: Sequence[float], other: Sequence[float]
) -> dict[str, float | None]:
    """Computes the mean of the paired differences and Student's paired t-test.

    Args:
      reference: Values of the reference, one for each seed.
      other: Values of the other contender for the same seeds.

    Returns:
      `mean`; `half_width`, half the width of the 95 % interval; and `p`, two-sided. The last two
      are `None` for a single pair.
    """
    differences = [b - a for a, b in zip(reference, other, strict=True)]
    mean = statistics.fmean(differences)
    if len(differences) == 1:
        return {"mean": mean, "half_width": None, "p": None}
    if len(set(differences)) == 1:  # no spread, so t is infinite or undefined
        return {"mean": mean, "half_width": 0.0, "p": 0.0 if mean else 1.0}
    from scipy.stats import ttest_rel

    with warnings.catch_warnings():
        # Differences that are equal but for rounding lose precision.
        warnings.simplefilter("ignore", RuntimeWarning)
        test = ttest_rel(other, reference)
        low, high = test.confidence_interval(0.95)
    return {"mean": mean, "half_width": float(high - low) / 2, "p": float(test.pvalue)}


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects p-values for how many there are (Holm, 1979).

    >>> [round(p, 2) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[position]))
        corrected[position] = highest
    return corrected


def _correct(rows: Sequence[Record]) -> None:
    """Gives the differences of a configuration their corrected p-values."""
    tested = [row["difference"] for row in rows if "difference" in row]
    tested = [difference for difference in tested if difference["p"] is not None]
    for difference, p in zip(tested, holm([each["p"] for each in tested]), strict=True):
        difference["p_holm"] = p
