"""Formats what was measured of each model as the rows of a table."""

from typing import Any

from noah_jax.inference.trained import TrainedModel
from noah_jax.tasks.task import has_top5

# The columns of percentages in the table, with their keys in a summary.
_SINGLE_LABEL = {"top-1": "top1", "top-5": "top5"}
_OF_ALL = {"top-1 of all": "top1_of_all", "top-5 of all": "top5_of_all"}
_MULTI_LABEL = {
    "mAP": "map",
    "mAP-VOC": "map_voc",
    "mAP-VOC07": "map_voc07",
    "CP": "cp",
    "CR": "cr",
    "CF1": "cf1",
    "OP": "op",
    "OR": "or",
    "OF1": "of1",
}


def describe_model(name: str, trained: TrainedModel, dataset: str) -> dict[str, Any]:
    """Returns the first values of a row: what is evaluated on what.

    Args:
      name: How the model is called.
      trained: The model.
      dataset: The name of the images.
    """
    return {
        "checkpoint": name,
        "step": trained.step,
        "ema": trained.ema,
        "model": trained.model.name,
        "dataset": dataset,
        "preprocessing": trained.preprocessing.to_json(),
    }


def columns_of(row: dict[str, Any], num_classes: int) -> dict[str, str]:
    """Returns the columns of percentages for a row, with their keys.

    Args:
      row: What was measured.
      num_classes: Number of the model's classes.
    """
    if "map" in row:
        return _MULTI_LABEL
    columns = dict(_SINGLE_LABEL)
    if not has_top5(row.get("classes", num_classes)):
        del columns["top-5"]
    if "classes" in row:
        columns |= _OF_ALL
        if not has_top5(num_classes):
            del columns["top-5 of all"]
    return columns


def header(columns: dict[str, str], width: int, *, real: bool) -> str:
    """Returns the line above the rows.

    Args:
      columns: What `columns_of` returns.
      width: Width of the checkpoints' names.
      real: Whether ImageNet-ReaL is measured too.
    """
    percentages = "".join(f" {title:>7}" for title in columns)
    head = f"{'checkpoint':{width}} {'step':>7}{percentages} {'loss':>8} {'images':>8}"
    return head + (f" {'ReaL top-1':>11} {'images':>8}" if real else "")


def table_row(row: dict[str, Any], columns: dict[str, str], width: int) -> str:
    """Returns the line of one model; see `header`."""
    percentages = "".join(
        f" {_percent(row[key]):>{max(7, len(title))}}" for title, key in columns.items()
    )
    loss = "none" if row["loss"] is None else f"{row['loss']:.4f}"
    line = (
        f"{row['checkpoint']:{width}} {row['step']:7}{percentages} {loss:>8} {row['examples']:8,}"
    )
    if "real_top1" in row:
        line += f" {row['real_top1']:10.2f}% {row['real_examples']:8,}"
    return line


def calibration_lines(measured: dict[str, Any]) -> list[str]:
    """Returns the lines about a model's calibration, see `Calibration.to_json`."""
    before, after = measured["before"], measured["after"]
    return [
        f"  {len(measured['bins'])} bins: {_scores(measured)}",
        f"  temperature {measured['temperature']:.4g}, fitted on {measured['fitted_on']:,} images;"
        f" on the other {measured['measured_on']:,}: {_scores(before)} become {_scores(after)}",
    ]


def paired_lines(measured: dict[str, Any]) -> list[str]:
    """Returns the lines about two models on the same images, see `PairedTest.to_json`."""
    low, high = measured["interval"]
    images = measured["images"]
    right = {key: measured["both"] + measured[f"only_{key}"] for key in "ab"}
    names = [measured["a"], measured["b"]]
    width = max(map(len, names))
    lines = [
        f"{key.upper()} {name:{width}} {_percent(100 * right[key] / images)} of {images:,} images"
        for key, name in zip("ab", names, strict=True)
    ]
    return [
        *lines,
        f"right: both {measured['both']:,}, only A {measured['only_a']:,}, only B"
        f" {measured['only_b']:,}, neither {measured['neither']:,}",
        f"A - B: {measured['difference']:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f}"
        f" (paired bootstrap, {measured['resamples']:,} resamples)",
        f"McNemar: exact p = {measured['p_exact']:.3g}, mid-p = {measured['p_mid']:.3g}",
    ]


def corruption_line(name: str, row: dict[str, Any], width: int) -> str:
    """Returns the line of a corruption, see `CorruptionErrors.row`."""
    errors = "".join(f" {_percent(error):>7}" for error in row["errors"])
    return (
        f"{name:{width}}{errors} {_percent(row['mean']):>7} {_percent(row['alexnet']):>7}"
        f" {_percent(row['ce']):>7}"
    )


def corruption_header(width: int) -> str:
    """Returns the line above those of the corruptions."""
    severities = "".join(f" {severity:>7}" for severity in range(1, 6))
    return f"{'corruption':{width}}{severities} {'mean':>7} {'AlexNet':>7} {'CE':>7}"


def _scores(scores: dict[str, Any]) -> str:
    return f"ECE {100 * scores['ece']:.2f}%, NLL {scores['nll']:.4f}, Brier {scores['brier']:.4f}"


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}%"
