"""A trained model as the programs use it: its weights, its preprocessing and its classes."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from noah_jax import console
from noah_jax.data.preprocessing import ARCHITECTURE, Preprocessing
from noah_jax.data.split import FolderSplit, read_split
from noah_jax.errors import InputError
from noah_jax.files import read_text
from noah_jax.hub.names import is_elsewhere
from noah_jax.inference.description import imagenet_classes
from noah_jax.inference.loading import load_with_step
from noah_jax.models.base import Model, Tree
from noah_jax.paths import expand_home
from noah_jax.runs.checkpoints import saved_steps
from noah_jax.runs.run_dir import CHECKPOINTS, MODEL_FILE
from noah_jax.tasks.multi_label import LOSSES

FRESH = "fresh"  # in model.json, a head that was drawn when the backbone was converted


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A model with its weights, its preprocessing and its classes.

    Attributes:
      path: What the user named.
      step: Training step of the checkpoint; 0 for weights from PyTorch.
      ema: Whether the weights are the exponential moving average.
      model: The model.
      params: The model's parameters.
      stats: The model's BatchNorm statistics.
      metadata: The contents of `model.json`, such as where converted weights come from.
      config: The configuration of the training; empty for converted weights.
      split: The split of class folders that the training made, if it made one.
    """

    path: str
    step: int
    ema: bool
    model: Model
    params: Tree
    stats: Tree
    metadata: dict[str, Any]
    config: dict[str, Any]
    split: FolderSplit | None = None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The classes in the order of the logits; `None` if they are not known."""
        return self.model.class_names

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared for the model."""
        assert self.model.preprocessing is not None  # `load_with_step` found it
        return self.model.preprocessing

    def check_head(self) -> None:
        """Raises an InputError if the model has no head, so that it gives features, not logits.

        Warns of a head that was never trained.
        """
        source = self.metadata.get("source")
        if isinstance(source, dict) and source.get("head") == FRESH:
            console.warn(f"{self.path} has a fresh head, which was never trained: train it first")
        if self.model.arguments["features_only"]:
            raise InputError(
                f"{self.path} holds a {self.model.name} without a head, which gives features and"
                " knows no classes; train a head on it with noah-jax train"
                f" --config.init_from={self.path}"
            )

    def say_preprocessing(self) -> None:
        """Says on standard error, in one line, how images are prepared and who says so."""
        console.note(f"{self.path}: {self.preprocessing.describe()}{self._advice()}")

    def _advice(self) -> str:
        """Returns what to do if only the architecture says how images are prepared."""
        if ARCHITECTURE not in self.preprocessing.sources.values():
            return ""
        return (
            "; if the weights were trained otherwise, give --mean, --std, --resize, --crop or"
            " --interpolation"
        )

    @property
    def multi_label(self) -> bool:
        """Whether the model was trained for several labels an image, judging by its loss."""
        return self.config.get("loss") in LOSSES

    def evaluation_config(self) -> dict[str, Any]:
        """Returns the part of the training's configuration that evaluation needs.

        It is the section `training` of `model.json`; empty for converted weights.
        """
        if not self.config:
            return {}
        data = self.config.get("data", {})
        dataset = self.config.get("dataset")
        return {
            **({} if dataset is None else {"dataset": dataset}),
            "loss": self.config.get("loss"),
            "asymmetric": self.config.get("asymmetric"),
            "data": {key: data.get(key) for key in ("dir", "eval_split")},
        }

    def predict(self, images: jax.Array | np.ndarray) -> jax.Array:
        """Computes the logits of a batch of images, see `Model.predict`.

        Args:
          images: uint8 pixels `[batch, height, width, 3]`, cut out and resized by
            `preprocessing.transform()`; they are normalised as in the training. Or floats of the
            same shape, which are normalised already.

        Returns:
          float32 logits `[batch, num_classes]`.

        Raises:
          ValueError: If the images have another shape or dtype.
        """
        mean, std = self.preprocessing.mean, self.preprocessing.std
        return self.model.predict(self.params, self.stats, images, mean=mean, std=std)

    def probabilities(self, logits: jax.Array | np.ndarray) -> jax.Array:
        """Converts logits `[..., num_classes]` to probabilities.

        With one label an image they add up to one; with several labels, each class has its own.
        """
        return jax.nn.sigmoid(logits) if self.multi_label else jax.nn.softmax(logits)

    def display_names(self, path: str | None = None) -> list[str]:
        """Returns a readable name for each class; `class 7` where none is known.

        Args:
          path: A text file with one name a line, which replaces the known names.

        Raises:
          ValueError: If the file cannot be read or does not have a name for every class.
        """
        if path is not None:
            return self._names_in(path)
        if self.class_names is None:
            return [f"class {i}" for i in range(self.model.num_classes)]
        table = imagenet_classes()
        return [table.get(name, name) for name in self.class_names]

    def _names_in(self, path: str) -> list[str]:
        names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        if len(names) != self.model.num_classes:
            raise InputError(
                f"{path} has {len(names)} names, {self.path} has {self.model.num_classes} classes"
            )
        return names


class CheckpointPath(NamedTuple):
    """Where one trained model lies.

    Attributes:
      path: A model's folder or a PyTorch file.
      step: Training step of a checkpoint in the folder; `None` for the newest.
    """

    path: str
    step: int | None

    @property
    def name(self) -> str:
        """The path that a user writes for it."""
        return self.path if self.step is None else f"{self.path}/{CHECKPOINTS}/{self.step}"


def find_checkpoints(paths: Sequence[str]) -> list[CheckpointPath]:
    """Finds the checkpoints that paths stand for.

    Args:
      paths: Each is a run's or a converted folder (its newest checkpoint), a checkpoint in it
        (`RUN/checkpoints/300`), all of them (`RUN/checkpoints`), a folder of such folders (the
        newest checkpoint of each), a PyTorch file, or a name such as `hf://USER/NAME`, see
        `noah_jax.hub.resolve.local_checkpoint`.

    Raises:
      ValueError: If a folder of checkpoints holds none.
    """
    return [checkpoint for path in paths for checkpoint in _expand(expand_home(path))]


def _expand(name: str) -> Iterator[CheckpointPath]:
    if is_elsewhere(name):
        yield CheckpointPath(name, None)
        return
    path = epath.Path(name)
    parent = path.parent
    if path.name.isdigit() and (parent.parent / MODEL_FILE).exists():
        yield CheckpointPath(os.fspath(parent.parent), int(path.name))
    elif path.name == CHECKPOINTS and (parent / MODEL_FILE).exists():
        if not (steps := saved_steps(path)):
            raise InputError(f"{path} holds no checkpoint")
        for step in steps:
            yield CheckpointPath(os.fspath(parent), step)
    elif path.is_dir() and not (path / MODEL_FILE).exists():
        folders = sorted(p for p in path.iterdir() if (p / MODEL_FILE).exists())
        # A folder alone may be laid out as a repository; loading it says what is missing.
        for folder in folders or [path]:
            yield CheckpointPath(os.fspath(folder), None)
    else:
        yield CheckpointPath(os.fspath(path), None)


def load_trained(
    path: str,
    step: int | None = None,
    *,
    ema: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> TrainedModel:
    """Loads what `find_checkpoints` found.

    Args:
      path: A model's folder or a PyTorch file.
      step: Training step of the checkpoint; `None` takes the newest one that can be used.
      ema: Load the exponential moving average of the weights.
      settings: Preprocessing that replaces what is stored with the weights, see
        `noah_jax.data.preprocessing.check_setting`.

    Raises:
      FileNotFoundError, ValueError, CheckpointError: See `noah_jax.load_model`.
    """
    loaded = load_with_step(path, ema=ema, step=step, settings=settings)
    name = CheckpointPath(path, step).name
    split = None if is_elsewhere(path) else read_split(epath.Path(path))
    return TrainedModel(path=name, ema=ema, split=split, **loaded._asdict())


def load_one(
    path: str, *, ema: bool = False, settings: Mapping[str, Any] | None = None
) -> TrainedModel:
    """Loads the one checkpoint that a path stands for.

    Args:
      path: See `find_checkpoints`.
      ema: Load the exponential moving average of the weights.
      settings: See `load_trained`.

    Raises:
      FileNotFoundError, ValueError, CheckpointError: See `load_trained`. A `ValueError` also if
        the path stands for several checkpoints.
    """
    checkpoints = find_checkpoints([path])
    if len(checkpoints) > 1:
        names = ", ".join(folder if step is None else str(step) for folder, step in checkpoints[:5])
        raise InputError(
            f"{path} holds {len(checkpoints)} checkpoints; name one of them, such as {names}"
        )
    return load_trained(*checkpoints[0], ema=ema, settings=settings)
