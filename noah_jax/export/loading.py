"""Loads a model that is exported."""

from collections.abc import Mapping
from typing import Any

from noah_jax.console import working
from noah_jax.inference.trained import TrainedModel, load_one


def load_to_export(source: str, *, ema: bool, settings: Mapping[str, Any] | None) -> TrainedModel:
    """Loads a model that has a head, and says how it prepares images.

    Args:
      source: Path of the model, see `noah_jax.inference.trained.load_one`.
      ema: Use the exponential moving average of the weights.
      settings: Preprocessing that replaces what is stored with the weights, see
        `noah_jax.data.preprocessing.check_setting`.

    Raises:
      InputError: If the model has no head.
      FileNotFoundError, CheckpointError: See `load_one`.
    """
    with working(f"loading {source}"):
        trained = load_one(source, ema=ema, settings=settings)
    trained.check_head()
    trained.say_preprocessing()
    return trained
