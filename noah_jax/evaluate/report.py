"""An evaluation in files: what it found by class, and the confusion matrix."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image, ImageDraw, ImageFont

from noah_jax.evaluate.evaluation import Evaluation
from noah_jax.evaluate.multilabel import MultiLabelEvaluation
from noah_jax.files import write_text

_SIDE = 800  # pixels of the matrix, about
_NAMED = 60  # classes up to which each has its name in the picture
_MARGIN = 10
_WHITE, _DARK = np.array([255, 255, 255]), np.array([8, 48, 107])


def write_report(
    folder: epath.Path,
    facts: dict[str, Any],
    evaluation: Evaluation | MultiLabelEvaluation,
    names: Sequence[str],
) -> None:
    """Writes `report.json` and `classes.csv`, each whole.

    Where images have one label each, `confusion.csv` and `confusion.png` as well.

    Args:
      folder: made if it does not exist.
      facts: what was evaluated, and the summary; part of `report.json`.
      evaluation: the evaluation.
      names: of the classes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(evaluation, MultiLabelEvaluation):
        _write_classes(folder, _precisions(evaluation, names), facts)
        return
    counts = evaluation.confusion()
    facts = {**facts, "confusion": counts.tolist()}
    _write_classes(folder, _classes(evaluation, counts, names), facts)
    rows = [[name, *row] for name, row in zip(names, counts.tolist(), strict=True)]
    write_text(folder / "confusion.csv", _csv([["label \\ predicted", *names], *rows]))
    png = io.BytesIO()
    draw_confusion(counts, names).save(png, "PNG")
    partial = folder / ".confusion.png.partial"
    partial.write_bytes(png.getvalue())
    partial.replace(folder / "confusion.png")


def _write_classes(
    folder: epath.Path, classes: Sequence[dict[str, Any]], facts: dict[str, Any]
) -> None:
    write_text(folder / "report.json", json.dumps({**facts, "classes": classes}) + "\n")
    write_text(folder / "classes.csv", _csv([list(classes[0]), *(row.values() for row in classes)]))


def _precisions(evaluation: MultiLabelEvaluation, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row a class: the images that have it, those that do not count for it, its precision."""
    precisions = evaluation.average_precisions()
    return [
        {
            "class": number,
            "name": name,
            "images": int((evaluation.labels[:, number] == 1).sum()),
            "ignored": int((evaluation.labels[:, number] < 0).sum()),
            "average_precision": precisions[number],
        }
        for number, name in enumerate(names)
    ]


def _classes(
    evaluation: Evaluation, counts: np.ndarray, names: Sequence[str]
) -> list[dict[str, Any]]:
    """A row a class; accuracies in per cent, `None` for classes without images."""
    rows = []
    for number, name in enumerate(names):
        mine = evaluation.labels == number
        others = counts[number].copy()
        others[number] = 0
        confused = int(others.argmax())
        rows.append(
            {
                "class": number,
                "name": name,
                "images": int(mine.sum()),
                "top1": 100 * float(evaluation.top1[mine].mean()) if mine.any() else None,
                "top5": 100 * float(evaluation.top5[mine].mean()) if mine.any() else None,
                "most_confused_with": names[confused] if others[confused] else None,
            }
        )
    return rows


def _csv(rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def draw_confusion(counts: np.ndarray, names: Sequence[str]) -> Image.Image:
    """The confusion matrix as a picture: the darker, the larger the share of a label's images.

    Args:
      counts: images by label (rows, from the top) and predicted class (columns).
      names: of the classes.
    """
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    # The square root, so that rare confusions can be seen.
    pixels = _WHITE + np.sqrt(shares)[..., None] * (_DARK - _WHITE)
    cell = max(1, _SIDE // len(counts))
    matrix = Image.fromarray(pixels.round().astype(np.uint8)).resize(
        (cell * len(counts),) * 2, Image.Resampling.NEAREST
    )
    font = ImageFont.load_default(min(14, max(8, cell - 2)))
    labels = list(names) if len(names) <= _NAMED else []
    widest = max((round(font.getlength(name)) for name in labels), default=0)
    left, top = widest + 2 * _MARGIN, widest + 3 * _MARGIN + 14
    picture = Image.new(
        "RGB", (left + matrix.width + _MARGIN, top + matrix.height + _MARGIN), "white"
    )
    picture.paste(matrix, (left, top))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((left - 1, top - 1, left + matrix.width, top + matrix.height), outline="gray")
    draw.text((left, _MARGIN), "rows: label, columns: predicted", fill="black")
    for number, name in enumerate(labels):
        middle = cell * number + cell // 2
        draw.text((left - _MARGIN // 2, top + middle), name, fill="black", font=font, anchor="rm")
        # Text can only be drawn level: a strip of its own, turned.
        strip = Image.new("RGB", (widest + 1, font.size + 4), "white")
        ImageDraw.Draw(strip).text(
            (0, strip.height // 2), name, fill="black", font=font, anchor="lm"
        )
        turned = strip.transpose(Image.Transpose.ROTATE_90)
        picture.paste(
            turned, (left + middle - turned.width // 2, top - _MARGIN // 2 - turned.height)
        )
    return picture
