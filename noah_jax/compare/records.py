"""Reads what a finished training left in its folder: its results, its curve and its cost."""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from noah_jax.files import read_text
from noah_jax.inference.loading import load_description
from noah_jax.models.flops import multiply_adds
from noah_jax.runs.run_dir import MODEL_FILE, check_config, read_results

# One training, or one row of the table, as compare.json has it.
Record = dict[str, Any]


def read_run(folder: epath.Path, expected: Mapping[str, Any]) -> Record | None:
    """Reads a finished run; `None` if it is not finished.

    Args:
      folder: The run's folder.
      expected: The configuration that the run must have, as nested dicts.

    Returns:
      The run's results and: `measure`, the key of what is compared; `value`, its last value in
      percent; `curve`, pairs of the epoch and the value after it; and `step_ms`, the median
      milliseconds of a step, input included, or `None` if the run did not log them.

    Raises:
      InputError: If the folder holds a run of another configuration.
    """
    check_config(folder, expected)
    results = read_results(folder)
    if results is None:
        return None
    lines = [json.loads(line) for line in read_text(folder / "metrics.jsonl").splitlines()]
    logged = [line for line in lines if line["split"] == "train"]
    evaluated = [line for line in lines if line["split"] == "eval"]
    last_step, last_epoch = max(
        ((line["step"], line["epoch"]) for line in logged),
        default=(results["step"], expected["epochs"] or 1.0),
    )
    epochs_per_step = last_epoch / last_step
    measure = "map" if "map" in results else "top1"
    return {
        **results,
        "measure": measure,
        "value": results[measure],
        "curve": [(line["step"] * epochs_per_step, line[measure]) for line in evaluated],
        "step_ms": _step_ms(logged),
    }


def _step_ms(logged: Sequence[Mapping[str, Any]]) -> float | None:
    """Returns the median over the lines of the log, without the first line of each start."""
    # The steps of a first line warm up. Runs of the first versions logged no milliseconds.
    timed = [line for line in logged if "step_ms" in line]
    warm = [line for line in timed if "compile_seconds" not in line]
    times = [line["step_ms"] for line in warm or timed]
    return statistics.median(times) if times else None


def count_multiply_adds(folder: epath.Path) -> int | None:
    """Counts the multiply-adds of a run's model for one image; `None` if it has no `model.json`."""
    if not (folder / MODEL_FILE).exists():
        return None
    return multiply_adds(load_description(os.fspath(folder)))
