"""Evaluates trained models and prints a row for each, as a table or as JSON lines."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from noah_jax import console
from noah_jax.compilation import DEFAULT_CACHE, enable_compilation_cache
from noah_jax.console import say, working
from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.decoding import DecodedSource
from noah_jax.data.shrunk import shrinking_of
from noah_jax.errors import InputError, NoahError, one_line
from noah_jax.evaluate.report_files import write_report
from noah_jax.evaluation.dataset import DatasetChoice, open_dataset
from noah_jax.evaluation.label_files import read_real_labels
from noah_jax.evaluation.results import SingleLabelResults
from noah_jax.evaluation.run import evaluate, make_inference
from noah_jax.inference.runner import Inference
from noah_jax.inference.trained import TrainedModel, find_checkpoints, load_trained
from noah_jax.tasks.task import has_top5

# The columns of percentages in the table, with their keys in a summary.
_SINGLE_LABEL = {"top-1": "top1", "top-5": "top5"}
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


def evaluate_all(
    checkpoints: Sequence[str],
    choice: DatasetChoice,
    *,
    ema: bool = False,
    batch_size: int = 128,
    num_threads: int | None = None,
    report: str | None = None,
    as_json: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Evaluates every checkpoint and prints a row for each.

    Args:
      checkpoints: Paths of the models, see `noah_jax.inference.trained.find_checkpoints`.
      choice: The images and labels.
      ema: Use the exponential moving average of the weights.
      batch_size: Images at a time.
      num_threads: Threads that decode; `None` is one for every core.
      report: Folder for the results by class; with several checkpoints each has a folder in it.
      as_json: Print one JSON object a line instead of the table.
      settings: Preprocessing that replaces what is stored with the weights, see
        `noah_jax.data.preprocessing.check_setting`.

    Raises:
      NoahError: If something does not fit a checkpoint, before its row is printed. Of a folder
        of several, the others are evaluated first.
    """
    paths = find_checkpoints(checkpoints)
    enable_compilation_cache(DEFAULT_CACHE)
    programs: dict[str, Inference] = {}
    width = max(map(len, [*(path.name for path in paths), "checkpoint"]))
    header = ""
    told = None
    left_out = 0
    for path in paths:
        try:
            with working(f"loading {path.name}"):
                trained = load_trained(*path, ema=ema, settings=settings)
            trained.check_head()
            with working("opening the data"):
                source = open_dataset(choice, trained)
        except NoahError as error:
            if len(paths) == len(checkpoints):
                raise
            # A folder of several may hold some that need other options.
            console.warn(f"{path.name} is left out: {one_line(error)}")
            left_out += 1
            continue
        num_classes = trained.model.num_classes
        real = read_real_labels(source, choice.real_labels, num_classes)
        if trained.preprocessing != told:
            trained.say_preprocessing()
            told = trained.preprocessing
        if (shrinking := shrinking_of(source)) is not None:
            console.warn_once(
                f"the images of {source.name} are {shrinking.describe()}; figures on the original"
                " images may differ"
            )
        corrupt_images = CorruptImages("replace", tell=console.warn)
        results = evaluate(
            _inference(programs, trained, min(batch_size, max(1, len(source)))),
            trained,
            DecodedSource(source),
            corrupt_images=corrupt_images,
            num_threads=num_threads,
        )
        row: dict[str, Any] = {
            "checkpoint": path.name,
            "step": trained.step,
            "ema": trained.ema,
            "model": trained.model.name,
            "dataset": source.name,
            "preprocessing": trained.preprocessing.to_json(),
            **results.summary(),
        }
        if real is not None and isinstance(results, SingleLabelResults):
            row |= results.real(real)
        row["damaged"] = len(corrupt_images)
        row["unlabelled"] = corrupt_images.unlabelled
        if corrupt_images.unlabelled:
            console.warn(
                f"{source.name}: {corrupt_images.unlabelled:,} of {len(source):,} images have no"
                " label and were left out"
            )
        if as_json:
            say(json.dumps(row))
        else:
            columns = _MULTI_LABEL if trained.multi_label else _single_label(num_classes)
            previous, header = header, _header(columns, width, real=real is not None)
            if header != previous:
                say(header)
            say(_table_row(row, columns, width))
        if report:
            folder = epath.Path(report)
            if len(paths) > 1:
                folder /= re.sub(r"[^\w.-]+", "_", path.name).strip("_")
            write_report(folder, row, results, trained.display_names())
    if left_out:
        raise InputError(f"{left_out} of {len(paths)} checkpoints are left out, see above")


def _inference(programs: dict[str, Inference], trained: TrainedModel, batch_size: int) -> Inference:
    """Returns the compiled program of a model; checkpoints of the same kind share it."""
    model = trained.model
    loss = [trained.config.get(key) for key in ("loss", "asymmetric")]
    key = repr((model.name, model.arguments, trained.preprocessing, loss, batch_size))
    if key not in programs:
        programs[key] = make_inference(trained, batch_size)
    return programs[key]


def _single_label(num_classes: int) -> dict[str, str]:
    titles = ["top-1", "top-5"] if has_top5(num_classes) else ["top-1"]
    return {title: _SINGLE_LABEL[title] for title in titles}


def _header(columns: dict[str, str], width: int, *, real: bool) -> str:
    percentages = "".join(f" {title:>7}" for title in columns)
    head = f"{'checkpoint':{width}} {'step':>7}{percentages} {'loss':>8} {'images':>8}"
    return head + (f" {'ReaL top-1':>11} {'images':>8}" if real else "")


def _table_row(row: dict[str, Any], columns: dict[str, str], width: int) -> str:
    percentages = "".join(
        f" {'none' if row[key] is None else f'{row[key]:.2f}%':>{max(7, len(title))}}"
        for title, key in columns.items()
    )
    loss = "none" if row["loss"] is None else f"{row['loss']:.4f}"
    line = (
        f"{row['checkpoint']:{width}} {row['step']:7}{percentages} {loss:>8} {row['examples']:8,}"
    )
    if "real_top1" in row:
        line += f" {row['real_top1']:10.2f}% {row['real_examples']:8,}"
    return line
