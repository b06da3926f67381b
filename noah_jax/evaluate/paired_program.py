"""Tests whether two models differ on the same images, and prints the result."""

import json
from collections.abc import Sequence

from noah_jax.console import say
from noah_jax.errors import InputError, UsageError
from noah_jax.evaluate.predictions import (
    SUFFIX,
    Predictions,
    check_same_images,
    predictions_of,
    read_predictions,
)
from noah_jax.evaluate.program import Evaluator, Options
from noah_jax.evaluate.table import paired_lines
from noah_jax.evaluation.dataset import DatasetChoice
from noah_jax.evaluation.paired import paired_test
from noah_jax.evaluation.results import SingleLabelResults
from noah_jax.inference.trained import CheckpointPath, find_checkpoints


def evaluate_against(checkpoints: Sequence[str], choice: DatasetChoice, options: Options) -> None:
    """Evaluates two models on the same images, each prepared as the model wants, and tests them.

    Args:
      checkpoints: The one model A, or a file of predictions that was written before.
      choice: The images and labels.
      options: The rest; `against` is model B, likewise.

    Raises:
      UsageError: If there are several models, or they were trained for several labels an image.
      InputError: If they were not evaluated on the same images.
    """
    if len(checkpoints) != 1:
        raise UsageError(
            f"--against compares one model with another, and --checkpoint names {len(checkpoints)}"
        )
    assert options.against is not None
    sides = [_find(name) for name in (*checkpoints, options.against)]
    paths = [side for side in sides if isinstance(side, CheckpointPath)]
    if options.predictions and len(paths) != 1:
        raise UsageError(
            f"--predictions is for one checkpoint, and --checkpoint and --against name {len(paths)}"
        )
    evaluator = Evaluator(paths, choice, options) if paths else None
    first, second = (
        side if isinstance(side, Predictions) else _predict(side, evaluator) for side in sides
    )
    check_same_images(first, second)
    measured = {
        "a": first.name,
        "b": second.name,
        **paired_test(first.right(), second.right()).to_json(),
    }
    if options.as_json:
        say(json.dumps(measured))
        return
    if paths:
        say("")
    for line in paired_lines(measured):
        say(line)


def _find(name: str) -> CheckpointPath | Predictions:
    if name.endswith(SUFFIX):
        return read_predictions(name)
    paths = find_checkpoints([name])
    if len(paths) > 1:
        raise InputError(
            f"--against compares one model with another, and {name} holds {len(paths)} checkpoints;"
            f" name one of them, such as {paths[-1].name}"
        )
    return paths[0]


def _predict(path: CheckpointPath, evaluator: Evaluator | None) -> Predictions:
    assert evaluator is not None
    trained, images = evaluator.prepare(path)
    results = evaluator.measure(path, trained, images)
    assert isinstance(results, SingleLabelResults)  # `prepare` refuses others
    return predictions_of(path.name, images, results)
