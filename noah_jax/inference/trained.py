"""A trained model for the programs that use one: its weights, its images, its classes."""

import dataclasses
import functools
import importlib.resources
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from etils import epath

from noah_jax.data.transforms import EvalTransform, make_eval_transform
from noah_jax.errors import InputError
from noah_jax.inference.loading import load_with_step
from noah_jax.models.base import Model, Tree
from noah_jax.runs import run_dir as workdirs
from noah_jax.runs.checkpoints import saved_steps
from noah_jax.tasks.multi_label import LOSSES


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What happens to an image before the model sees it.

    Attributes:
      size: `(height, width)` of what the model sees, in pixels.
      resize: pixels of the shorter side before the centre is cut out; `None` resizes so that
        the image just covers `size`.
      interpolation: of that resizing, "bilinear" or "bicubic".
      mean: per-channel mean of the pixels in 0..1, which is subtracted.
      std: per-channel standard deviation, which they are divided by.
    """

    size: tuple[int, int]
    resize: int | None
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def transform(self) -> EvalTransform:
        """What makes uint8 `[*size, 3]` of an image; normalising comes after it."""
        return make_eval_transform(self.size, resize=self.resize, interpolation=self.interpolation)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model with its weights.

    Attributes:
      path: what the user named.
      step: of the checkpoint; 0 for weights from PyTorch.
      ema: whether the weights are the moving average.
      model: the model.
      params: its parameters.
      stats: its BatchNorm statistics.
      facts: what `model.json` says besides, such as where converted weights are from.
      config: the configuration of the training; empty for converted weights.
      class_names: the classes in the order of the logits, `None` if nobody wrote them down.
      preprocessing: of the images.
    """

    path: str
    step: int
    ema: bool
    model: Model
    params: Tree
    stats: Tree
    facts: dict[str, Any]
    config: dict[str, Any]
    class_names: tuple[str, ...] | None
    preprocessing: Preprocessing

    @property
    def multi_label(self) -> bool:
        """Whether it was trained for several labels an image, as its training's loss tells."""
        return self.config.get("loss") in LOSSES

    def probabilities(self, logits: jax.Array) -> jax.Array:
        """Of the classes, `[..., num_classes]`: each its own with several labels, else shares."""
        return jax.nn.sigmoid(logits) if self.multi_label else jax.nn.softmax(logits)

    def display_names(self, path: str | None = None) -> list[str]:
        """What the classes are called for people; `class 7` where it is not known.

        Args:
          path: of a file with a name a line, which takes the place of what is known.

        Raises:
          ValueError: if the file does not have a name for every class.
        """
        if path is not None:
            with open(path, encoding="utf-8") as lines:
                names = [line.strip() for line in lines if line.strip()]
            if len(names) != self.model.num_classes:
                raise InputError(
                    f"{path} has {len(names)} names, {self.path} {self.model.num_classes} classes"
                )
            return names
        if self.class_names is None:
            return [f"class {i}" for i in range(self.model.num_classes)]
        table = imagenet_classes()
        return [table.get(name, name) for name in self.class_names]


def find_checkpoints(paths: Sequence[str]) -> list[tuple[str, int | None]]:
    """The checkpoints that paths stand for, as a model's folder or file and a step in it.

    Args:
      paths: each a run's or a converted folder (its newest checkpoint, the step is `None`), a
        checkpoint in it (`RUN/checkpoints/300`), all of them (`RUN/checkpoints`), a folder of
        such folders (the newest checkpoint of each), or a PyTorch file.

    Raises:
      ValueError: if a folder of checkpoints holds none.
    """
    return [found for path in paths for found in _find(epath.Path(path))]


def _find(path: epath.Path) -> Iterator[tuple[str, int | None]]:
    run = path.parent
    if path.name.isdigit() and (run.parent / workdirs.MODEL_FILE).exists():
        yield os.fspath(run.parent), int(path.name)
    elif path.name == workdirs.CHECKPOINTS and (run / workdirs.MODEL_FILE).exists():
        if not (steps := saved_steps(path)):
            raise InputError(f"{path} holds no checkpoint")
        for step in steps:
            yield os.fspath(run), step
    elif path.is_dir() and not (path / workdirs.MODEL_FILE).exists():
        inside = sorted(p for p in path.iterdir() if (p / workdirs.MODEL_FILE).exists())
        for folder in inside or [path]:  # of which loading says what it lacks
            yield os.fspath(folder), None
    else:
        yield os.fspath(path), None


def load_trained(path: str, step: int | None = None, *, ema: bool = False) -> Trained:
    """Loads what `find_checkpoints` found.

    Args:
      path: a model's folder or a PyTorch file.
      step: of the checkpoint; `None` takes the newest that can be used.
      ema: take the moving average of the weights.

    Raises:
      FileNotFoundError, ValueError, CheckpointError: see `noah_jax.load_model`.
    """
    name = path if step is None else f"{path}/{workdirs.CHECKPOINTS}/{step}"
    step, model, params, stats = load_with_step(path, ema=ema, step=step)
    facts = _json(epath.Path(path) / workdirs.MODEL_FILE)
    config = workdirs.read_config(epath.Path(path)) or {}
    names = facts.get("class_names")
    if names is None and model.num_classes == len(imagenet_classes()):
        names = imagenet_classes()
    return Trained(
        path=name,
        step=step,
        ema=ema,
        model=model,
        params=params,
        stats=stats,
        facts=facts,
        config=config,
        class_names=None if names is None else tuple(names),
        preprocessing=_preprocessing(model, config.get("data")),
    )


def load_one(path: str, *, ema: bool = False) -> Trained:
    """Loads the one checkpoint that a path stands for.

    Raises:
      FileNotFoundError, ValueError, CheckpointError: see `load_trained`; also if it stands for
        several.
    """
    found = find_checkpoints([path])
    if len(found) > 1:
        names = ", ".join(where if step is None else str(step) for where, step in found[:5])
        raise InputError(f"{path} holds {len(found)} checkpoints, name one of them: {names}")
    return load_trained(*found[0], ema=ema)


@functools.cache
def imagenet_classes() -> dict[str, str]:
    """ImageNet-1k's classes by WordNet id, in the order of the labels, in words."""
    path = importlib.resources.files("noah_jax.data") / "imagenet_classes.txt"
    return dict(line.split(" ", 1) for line in path.read_text("utf-8").splitlines())


def _json(path: epath.Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _preprocessing(model: Model, data: dict[str, Any] | None) -> Preprocessing:
    """As in the training's own evaluation, or as the architecture was published."""
    if data is None:
        architecture = model.architecture
        return Preprocessing(
            model.image_size,
            int(min(model.image_size) / architecture.crop_pct),
            architecture.interpolation,
            tuple(model.mean),
            tuple(model.std),
        )
    return Preprocessing(
        model.image_size,
        data["eval_resize"],
        data["eval_interpolation"] or data["interpolation"],
        tuple(data["mean"] or model.mean),
        tuple(data["std"] or model.std),
    )
