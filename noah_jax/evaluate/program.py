"""Evaluates trained models and prints a row for each, as a table or as JSON lines."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from noah_jax import console
from noah_jax.compilation import DEFAULT_CACHE, enable_compilation_cache
from noah_jax.console import say, working
from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.decoding import DecodedSource
from noah_jax.data.shrunk import shrinking_of
from noah_jax.errors import InputError, NoahError, UsageError, one_line
from noah_jax.evaluate.predictions import predictions_of, write_predictions
from noah_jax.evaluate.report_files import report_folder, write_report
from noah_jax.evaluate.table import (
    calibration_lines,
    columns_of,
    describe_model,
    header,
    table_row,
)
from noah_jax.evaluation.calibration import HIGHEST, LOWEST, Calibration, calibrate
from noah_jax.evaluation.dataset import DatasetChoice, EvaluationImages, open_images
from noah_jax.evaluation.label_files import read_real_labels
from noah_jax.evaluation.results import MultiLabelResults, SingleLabelResults
from noah_jax.evaluation.run import evaluate, make_inference
from noah_jax.inference.runner import Inference
from noah_jax.inference.trained import (
    CheckpointPath,
    TrainedModel,
    find_checkpoints,
    load_trained,
)


@dataclasses.dataclass(frozen=True)
class Options:
    """How models are evaluated, and what of the results is told and written.

    Attributes:
      ema: Use the exponential moving average of the weights.
      batch_size: Images at a time.
      num_threads: Threads that decode; `None` is one for every core.
      report: Folder for the results by class; with several checkpoints each has a folder in it.
      as_json: Print one JSON object a line instead of the table.
      settings: Preprocessing that replaces what is stored with the weights, see
        `noah_jax.data.preprocessing.check_setting`.
      calibration: Measure the calibration too.
      predictions: File for the predictions of the one checkpoint.
      against: The other model of a paired test, or a file of its predictions.
    """

    ema: bool = False
    batch_size: int = 128
    num_threads: int | None = None
    report: str | None = None
    as_json: bool = False
    settings: Mapping[str, Any] | None = None
    calibration: bool = False
    predictions: str | None = None
    against: str | None = None


def evaluate_all(checkpoints: Sequence[str], choice: DatasetChoice, options: Options) -> None:
    """Evaluates every checkpoint and prints a row for each.

    Args:
      checkpoints: Paths of the models, see `noah_jax.inference.trained.find_checkpoints`.
      choice: The images and labels.
      options: The rest.

    Raises:
      NoahError: If something does not fit a checkpoint, before its row is printed. Of a folder
        of several, the others are evaluated first.
    """
    paths = find_checkpoints(checkpoints)
    if options.predictions and len(paths) > 1:
        raise UsageError(
            f"--predictions is for one checkpoint, and --checkpoint names {len(paths)}"
        )
    evaluator = Evaluator(paths, choice, options)
    left_out = 0
    for path in paths:
        try:
            prepared = evaluator.prepare(path)
        except NoahError as error:
            if len(paths) == len(checkpoints):
                raise
            # A folder of several may hold some that need other options.
            console.warn(f"{path.name} is left out: {one_line(error)}")
            left_out += 1
            continue
        evaluator.measure(path, *prepared)
    if left_out:
        raise InputError(f"{left_out} of {len(paths)} checkpoints are left out, see above")


class Evaluator:
    """Evaluates models one by one; those of one kind share the compiled program.

    Args:
      paths: All models that will be evaluated.
      choice: The images and labels.
      options: The rest.
    """

    def __init__(
        self, paths: Sequence[CheckpointPath], choice: DatasetChoice, options: Options
    ) -> None:
        enable_compilation_cache(DEFAULT_CACHE)
        self._choice, self._options = choice, options
        self._several = len(paths) > 1
        self._width = max(map(len, [*(path.name for path in paths), "checkpoint"]))
        self._programs: dict[str, Inference] = {}
        self._header = ""
        self._told: set[Any] = set()

    def prepare(self, path: CheckpointPath) -> tuple[TrainedModel, EvaluationImages]:
        """Loads a model and opens its images.

        Raises:
          NoahError: If either fails, or does not fit what was asked for.
        """
        with working(f"loading {path.name}"):
            trained = load_trained(*path, ema=self._options.ema, settings=self._options.settings)
        trained.check_head()
        for option in ("calibration", "predictions", "against"):
            if trained.multi_label and getattr(self._options, option):
                raise UsageError(
                    f"--{option} is for one label an image, and {path.name} was trained for several"
                )
        with working("opening the data"):
            return trained, open_images(self._choice, trained)

    def measure(
        self, path: CheckpointPath, trained: TrainedModel, images: EvaluationImages
    ) -> SingleLabelResults | MultiLabelResults:
        """Evaluates a model, prints its row and writes what was asked for."""
        source, options = images.source, self._options
        num_classes = trained.model.num_classes
        real = read_real_labels(source, self._choice.real_labels, num_classes)
        self._tell_once(str(trained.preprocessing), trained.say_preprocessing)
        if (about := images.about) is not None:
            self._tell_once(about, lambda: console.note(about))
        if (shrinking := shrinking_of(source)) is not None:
            console.warn_once(
                f"the images of {source.name} are {shrinking.describe()}; figures on the original"
                " images may differ"
            )
        corrupt_images = CorruptImages("replace", tell=console.warn)
        results = evaluate(
            self._inference(trained, images),
            trained,
            DecodedSource(source),
            corrupt_images=corrupt_images,
            num_threads=options.num_threads,
            classes=images.classes,
        )
        row: dict[str, Any] = {
            **describe_model(path.name, trained, source.name),
            **results.summary(),
        }
        calibration = None
        if isinstance(results, SingleLabelResults):
            if real is not None:
                row |= results.real(real)
            if options.calibration:
                calibration = _calibrate(results, path.name)
                row["calibration"] = calibration.to_json()
        row["damaged"] = len(corrupt_images)
        row["unlabelled"] = corrupt_images.unlabelled
        if corrupt_images.unlabelled:
            console.warn(
                f"{source.name}: {corrupt_images.unlabelled:,} of {len(source):,} images have no"
                " label and were left out"
            )
        self._print(row, num_classes)
        if options.report:
            folder = report_folder(options.report, path.name, several=self._several)
            write_report(folder, row, results, trained.display_names(), calibration)
        if options.predictions and isinstance(results, SingleLabelResults):
            write_predictions(options.predictions, predictions_of(path.name, images, results))
        return results

    def _print(self, row: dict[str, Any], num_classes: int) -> None:
        if self._options.as_json:
            say(json.dumps(row))
            return
        columns = columns_of(row, num_classes)
        previous = self._header
        self._header = header(columns, self._width, real="real_top1" in row)
        if self._header != previous:
            say(self._header)
        say(table_row(row, columns, self._width))
        for line in calibration_lines(row["calibration"]) if "calibration" in row else ():
            say(line)

    def _tell_once(self, key: str, tell: Any) -> None:
        if key not in self._told:
            self._told.add(key)
            tell()

    def _inference(self, trained: TrainedModel, images: EvaluationImages) -> Inference:
        """Returns the compiled program of a model; checkpoints of the same kind share it."""
        model = trained.model
        batch_size = min(self._options.batch_size, max(1, len(images.source)))
        loss = [trained.config.get(key) for key in ("loss", "asymmetric")]
        kind = (model.name, model.arguments, trained.preprocessing, loss, batch_size)
        key = repr((*kind, images.classes))
        if key not in self._programs:
            self._programs[key] = make_inference(
                trained,
                batch_size,
                classes=images.classes,
                keep_logits=self._options.calibration,
            )
        return self._programs[key]


def _calibrate(results: SingleLabelResults, name: str) -> Calibration:
    """Measures the calibration, and warns if no temperature is the best."""
    assert results.logits is not None
    labels = results.labels
    if results.classes is not None:
        labels = np.searchsorted(results.classes, labels)
    with working("measuring the calibration"):
        calibration = calibrate(results.logits, labels)
    if calibration.temperature in (LOWEST, HIGHEST):
        console.warn(
            f"{name}: no temperature from {LOWEST:g} to {HIGHEST:g} is the best for the"
            f" {calibration.fitted_on:,} images that it is fitted on; it would be beyond"
            f" {calibration.temperature:g}"
        )
    return calibration
