"""Evaluates trained models on ImageNet-C and prints the error with each corruption."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from noah_jax import console
from noah_jax.compilation import DEFAULT_CACHE, enable_compilation_cache
from noah_jax.console import say, working
from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.decoding import DecodedSource
from noah_jax.data.folder_walk import first_names
from noah_jax.data.preprocessing import COVER, GIVEN
from noah_jax.errors import InputError, one_line
from noah_jax.evaluate.program import Options
from noah_jax.evaluate.report_files import report_folder, write_corruption_report
from noah_jax.evaluate.table import corruption_header, corruption_line, describe_model
from noah_jax.evaluation.corruptions import (
    ALEXNET,
    EXTRA,
    SEVERITIES,
    STANDARD,
    CorruptionErrors,
)
from noah_jax.evaluation.results import SingleLabelResults
from noah_jax.evaluation.run import evaluate, make_inference
from noah_jax.evaluation.wordnet_folders import open_wordnet_folders, wordnet_ids
from noah_jax.inference.runner import Inference
from noah_jax.inference.trained import TrainedModel, find_checkpoints, load_trained

_NAME = "ImageNet-C"
NUM_CLASSES = 1000
LAST_STANDARD = list(STANDARD)[-1]
_WIDTH = max(map(len, ALEXNET))

Folders = Mapping[str, Mapping[int, epath.Path]]


def evaluate_corruptions(
    checkpoints: Sequence[str], root: epath.Path, folders: Folders, options: Options
) -> None:
    """Evaluates every checkpoint on every corruption, and prints a table for each.

    Images are not enlarged before the crop, unless the user says how they are resized: they have
    224 pixels already, and the paper only cuts out their centre. Predictions are among all classes
    of the model, as for AlexNet.

    Args:
      checkpoints: Paths of the models, see `noah_jax.inference.trained.find_checkpoints`.
      root: The folder of ImageNet-C.
      folders: What `find_corruptions` found in it.
      options: The rest.

    Raises:
      NoahError: If something does not fit a checkpoint. If sets cannot be evaluated, the others
        are evaluated first.
    """
    enable_compilation_cache(DEFAULT_CACHE)
    paths = find_checkpoints(checkpoints)
    left_out: list[str] = []
    for path in paths:
        with working(f"loading {path.name}"):
            trained = load_trained(*path, ema=options.ema, settings=options.settings)
        trained.check_head()
        wordnet_ids(trained)  # it says what does not fit
        if trained.preprocessing.sources["resize"] != GIVEN:
            trained.model.preprocessing = trained.preprocessing.override({"resize": COVER}, _NAME)
        trained.say_preprocessing()
        about = describe_model(path.name, trained, str(root))
        report = None
        if options.report:
            report = report_folder(options.report, path.name, several=len(paths) > 1)
        row: dict[str, Any] = {}
        for measured in _measure(trained, root, folders, options, left_out):
            row = {**about, **measured}
            if report is not None:
                write_corruption_report(report, row)
        if not row:
            break
        if options.as_json:
            say(json.dumps(row))
        if row["classes"] != NUM_CLASSES:
            console.warn(
                f"{root} has {row['classes']:,} classes, and AlexNet's errors are among ImageNet's"
                f" {NUM_CLASSES:,}: CE and mCE do not compare with published ones"
            )
    if left_out:
        raise InputError(
            f"{len(left_out)} of the sets in {root} are left out ({first_names(left_out)}), see"
            " above"
        )


def _measure(
    trained: TrainedModel,
    root: epath.Path,
    folders: Folders,
    options: Options,
    left_out: list[str],
) -> Iterator[dict[str, Any]]:
    """Evaluates one model, and prints a row when a corruption is done.

    Args:
      trained: The model.
      root: The folder of ImageNet-C.
      folders: The sets.
      options: The rest.
      left_out: Takes the names of the sets that cannot be evaluated, such as `fog/3`.

    Yields:
      What was measured so far, after each corruption that is there.
    """
    corrupt_images = CorruptImages("replace", tell=console.warn)
    tell = _silent if options.as_json else say
    tell(f"{trained.path}, top-1 error on {root}")
    tell(corruption_header(_WIDTH))
    errors: dict[str, dict[int, float]] = {}
    examples, fewest_classes = 0, trained.model.num_classes
    inference: Inference | None = None
    for name in ALEXNET:
        for severity, folder in folders.get(name, {}).items():
            try:
                source, classes = open_wordnet_folders(folder, trained)
                if inference is None:
                    inference = make_inference(trained, min(options.batch_size, len(source)))
                results = evaluate(
                    inference,
                    trained,
                    DecodedSource(source),
                    corrupt_images=corrupt_images,
                    num_threads=options.num_threads,
                    doing=f"evaluating {trained.path} on {name}/{severity}",
                )
            except InputError as error:
                console.warn(f"{name}/{severity} is left out: {one_line(error)}")
                left_out.append(f"{name}/{severity}")
                continue
            assert isinstance(results, SingleLabelResults)
            fewest_classes = min(fewest_classes, len(classes))
            errors.setdefault(name, {})[severity] = 1 - float(results.top1.mean())
            examples += len(results.labels)
        result = CorruptionErrors(errors)
        if name in errors:
            tell(corruption_line(name, result.row(name), _WIDTH))
        if name == LAST_STANDARD:
            tell(_mce_line(result))
            if any(extra in folders for extra in EXTRA):
                tell("for validation, not in mCE:")
        if name in errors:
            yield {
                **result.to_json(),
                "classes": fewest_classes,
                "examples": examples,
                "damaged": len(corrupt_images),
            }


def _mce_line(result: CorruptionErrors) -> str:
    if result.mce is None or result.mean_error is None:
        missing = first_names(result.missing(STANDARD))
        return f"no mCE, which needs all {len(STANDARD)} x {len(SEVERITIES)} sets: lacks {missing}"
    return (
        f"mCE {100 * result.mce:.2f}%, the mean CE of these {len(STANDARD)};"
        f" mean error {100 * result.mean_error:.2f}%"
    )


def _silent(*words: Any) -> None:
    pass
