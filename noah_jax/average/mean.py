"""The mean of weights, and which checkpoints may be averaged."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from noah_jax.errors import InputError
from noah_jax.inference.trained import TrainedModel

# Arguments of a model that change neither the shape nor the meaning of its weights.
_FREE = frozenset({"drop_rate", "drop_path_rate", "head_drop_rate", "remat", "dtype"})


class Mean:
    """The running mean of weights, in float64."""

    def __init__(self) -> None:
        self._sum: Any = None
        self._count = 0

    def of(self, model: TrainedModel) -> Any:
        """Returns the mean that a further model would make, `(params, stats)` in their dtypes."""
        total = self._plus(model)
        return jax.tree.map(
            lambda x, like: (x / (self._count + 1)).astype(like.dtype), total, _weights(model)
        )

    def add(self, model: TrainedModel) -> None:
        """Takes a model into the mean."""
        self._sum = self._plus(model)
        self._count += 1

    def _plus(self, model: TrainedModel) -> Any:
        weights = jax.tree.map(lambda x: np.asarray(x, np.float64), _weights(model))
        return weights if self._sum is None else jax.tree.map(np.add, self._sum, weights)


def _weights(model: TrainedModel) -> Any:
    return jax.tree.map(np.asarray, (model.params, model.stats))


def with_weights(model: TrainedModel, weights: Any) -> TrainedModel:
    """Returns a model with other weights, `(params, stats)`."""
    params, stats = weights
    return dataclasses.replace(model, params=params, stats=stats)


def check_alike(first: TrainedModel, others: Iterable[TrainedModel]) -> None:
    """Checks that weights can be averaged.

    Raises:
      InputError: If a model has another architecture, other classes or another preprocessing.
    """
    for other in others:
        for what, a, b in (
            ("the model", first.model.name, other.model.name),
            *_arguments(first, other),
            ("the classes", first.class_names, other.class_names),
            ("the kind of labels", first.multi_label, other.multi_label),
            ("the preprocessing", _preprocessing(first), _preprocessing(other)),
        ):
            if a != b:
                raise InputError(
                    f"{other.path} cannot be averaged with {first.path}: {what} {_differ(a, b)}"
                )


def _arguments(first: TrainedModel, other: TrainedModel) -> list[tuple[str, Any, Any]]:
    ours, theirs = first.model.arguments, other.model.arguments
    keys = sorted((ours.keys() | theirs.keys()) - _FREE)
    return [(f"the argument {key}", ours.get(key), theirs.get(key)) for key in keys]


def _preprocessing(model: TrainedModel) -> Any:
    description = model.preprocessing.to_json()
    description.pop("sources", None)  # who said so does not count
    return description


def _differ(a: Any, b: Any) -> str:
    words = [str(value) for value in (b, a)]
    return f"is {words[0]} and {words[1]}" if max(map(len, words)) < 60 else "differ"
