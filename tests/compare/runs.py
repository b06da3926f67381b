"""Finished trainings, as compare.json has them, for the tests of tables and figures."""

from collections.abc import Mapping, Sequence
from typing import Any

VALUES = {"linear": [50.0, 52.0], "noah": [51.0, 53.2]}


def make_runs(
    values: Mapping[str, Sequence[float]] = VALUES, config: str = "q", model: str = "resnet18"
) -> list[dict[str, Any]]:
    """Makes a run for each label and value; the position of a value is its seed."""
    return [
        {
            "config": config,
            "head": label,
            "setting": {},
            "label": label,
            "seed": seed,
            "model": f"noah_{model}" if label == "noah" else model,
            "num_params": 1000,
            "multiply_adds": 2_000_000 + 1_000 * len(label),
            "step_ms": 10.0 + seed,
            "measure": "top1",
            "value": value,
            "curve": [(epoch * 1.0016, value + epoch) for epoch in range(1, 5)],
        }
        for label, of_label in values.items()
        for seed, value in enumerate(of_label)
    ]
