"""Writes the report of an evaluation: its results by class and the confusion matrix."""

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from etils import epath

from noah_jax.evaluation.calibration import Calibration
from noah_jax.evaluation.corruptions import SEVERITIES
from noah_jax.evaluation.results import MultiLabelResults, SingleLabelResults
from noah_jax.files import make_folder, write_bytes, write_text


def report_folder(report: str, name: str, *, several: bool) -> epath.Path:
    """Returns the folder for the report of a model.

    Args:
      report: The folder that `--report` names.
      name: How the model is called.
      several: Whether several models are evaluated; each has a folder of its own then.
    """
    folder = epath.Path(report)
    return folder / re.sub(r"[^\w.-]+", "_", name).strip("_") if several else folder


def write_report(
    folder: epath.Path,
    summary: dict[str, Any],
    results: SingleLabelResults | MultiLabelResults,
    class_names: Sequence[str],
    calibration: Calibration | None = None,
) -> None:
    """Writes `report.json` and `classes.csv`, each whole.

    With one label an image, also `confusion.csv` and `confusion.png`; with a calibration,
    `reliability.png`.

    Args:
      folder: The folder for the files; made if it does not exist.
      summary: What was evaluated, and the measures over all images; a part of `report.json`.
      results: The results.
      class_names: Names of the classes.
      calibration: The calibration, if it was measured.

    Raises:
      WriteError: If the folder cannot be written.
    """
    make_folder(folder)
    if isinstance(results, MultiLabelResults):
        _write_classes(folder, _precision_rows(results, class_names), summary)
        return
    counts = results.confusion()
    _write_classes(
        folder,
        _accuracy_rows(results, counts, class_names),
        {**summary, "confusion": counts.tolist()},
    )
    rows = [[name, *row] for name, row in zip(class_names, counts.tolist(), strict=True)]
    write_text(folder / "confusion.csv", _csv([["label \\ predicted", *class_names], *rows]))
    # An evaluation without a report need not wait for matplotlib.
    from noah_jax.evaluate.confusion_picture import draw_confusion
    from noah_jax.pictures.layout import encode_png

    subtitle = f"{summary['checkpoint']} on {summary['dataset']}"
    picture = draw_confusion(counts, class_names, subtitle)
    write_bytes(folder / "confusion.png", encode_png(picture))
    if calibration is not None:
        from noah_jax.evaluate.reliability_picture import draw_reliability, encode_figure

        figure = draw_reliability(calibration, subtitle)
        write_bytes(folder / "reliability.png", encode_figure(figure))


def write_corruption_report(folder: epath.Path, summary: dict[str, Any]) -> None:
    """Writes `report.json` and `corruptions.csv`, each whole.

    Args:
      folder: The folder for the files; made if it does not exist.
      summary: What was evaluated, with what `CorruptionErrors.to_json` returns.

    Raises:
      WriteError: If the folder cannot be written.
    """
    make_folder(folder)
    write_text(folder / "report.json", json.dumps(summary) + "\n")
    rows = [
        [name, row["standard"], *row["errors"], row["mean"], row["alexnet"], row["ce"]]
        for name, row in summary["corruptions"].items()
    ]
    severities = [f"severity_{severity}" for severity in SEVERITIES]
    heading = ["corruption", "standard", *severities, "mean", "alexnet", "ce"]
    write_text(folder / "corruptions.csv", _csv([heading, *rows]))


def _write_classes(
    folder: epath.Path, rows: Sequence[dict[str, Any]], summary: dict[str, Any]
) -> None:
    write_text(folder / "report.json", json.dumps({**summary, "classes": rows}) + "\n")
    write_text(folder / "classes.csv", _csv([list(rows[0]), *(row.values() for row in rows)]))


def _precision_rows(results: MultiLabelResults, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """For each class: the images that have it, those that are ignored, its average precision."""
    precisions = results.average_precisions()
    return [
        {
            "class": index,
            "name": name,
            "images": int((results.labels[:, index] == 1).sum()),
            "ignored": int((results.labels[:, index] < 0).sum()),
            "average_precision": precisions[index],
        }
        for index, name in enumerate(class_names)
    ]


def _accuracy_rows(
    results: SingleLabelResults, counts: np.ndarray, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """For each class its accuracies in percent (`None` without images) and what it is taken for.

    Args:
      results: The results.
      counts: The confusion matrix, see `SingleLabelResults.confusion`.
      class_names: Names of the classes.
    """
    rows = []
    for index, name in enumerate(class_names):
        of_class = results.labels == index
        others = counts[index].copy()
        others[index] = 0
        confused = int(others.argmax())
        rows.append(
            {
                "class": index,
                "name": name,
                "images": int(of_class.sum()),
                "top1": 100 * float(results.top1[of_class].mean()) if of_class.any() else None,
                "top5": 100 * float(results.top5[of_class].mean()) if of_class.any() else None,
                "most_confused_with": class_names[confused] if others[confused] else None,
            }
        )
    return rows


def _csv(rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
