"""The frozen backbone that is probed, and the models of backbone and head made from it."""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from noah_jax import console
from noah_jax.compilation import QUICK_COMPILE
from noah_jax.console import working
from noah_jax.errors import InputError, MissingError, did_you_mean
from noah_jax.inference.description import describe_model
from noah_jax.inference.trained import TrainedModel, load_one
from noah_jax.models import create_model
from noah_jax.models.base import Model, Tree
from noah_jax.models.create import NOAH_ARGUMENTS
from noah_jax.models.registry import NOAH_PREFIX, list_models
from noah_jax.paths import expand_home

# Arguments of `create_model` that are not the backbone's, or change no feature.
_OTHER_ARGUMENTS = {
    *("num_classes", "head", *NOAH_ARGUMENTS, "head_options", "head_drop_rate", "features_only"),
    *("batch_norm_group", "remat", "drop_rate", "drop_path_rate"),
}


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A frozen backbone with its weights.

    Attributes:
      trained: The model that it comes from, whose head is not used.
      fresh: Whether its weights are random.
    """

    trained: TrainedModel
    fresh: bool

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of `create_model` that make the backbone."""
        arguments = self.trained.model.arguments
        return {k: v for k, v in arguments.items() if k not in _OTHER_ARGUMENTS}

    @property
    def has_class_token(self) -> bool:
        """Whether the backbone has a class token."""
        return "cls_token" in self.trained.params

    @functools.cached_property
    def record(self) -> dict[str, Any]:
        """What decides the features of an image, as JSON holds it."""
        preprocessing = self.trained.preprocessing.to_json()
        preprocessing.pop("source")
        return {
            "backbone": self.trained.model.name.removeprefix(NOAH_PREFIX),
            "arguments": json.loads(json.dumps(self.arguments)),
            "sha256": self._checksum(),
            "preprocessing": preprocessing,
        }

    def with_head(self, head: str, num_classes: int) -> Model:
        """Makes the model of this backbone and a head.

        Args:
          head: Name of a registered head.
          num_classes: Number of classes.

        Raises:
          InputError: If there is no such head, or it does not fit the backbone.
        """
        name = self.trained.model.name.removeprefix(NOAH_PREFIX)
        name = NOAH_PREFIX + name if head == "noah" else name
        arguments = self.arguments
        model = create_model(name, head=head, num_classes=num_classes, **arguments)
        if ("cls_token" in model.abstract()[0]) != self.has_class_token:
            arguments["class_token"] = self.has_class_token
            model = create_model(name, head=head, num_classes=num_classes, **arguments)
        _check_same(_backbone_shapes(*model.abstract()), _backbone_shapes(*self._weights), name)
        return model

    def weights_with(self, head_params: Tree, head_stats: Tree) -> dict[str, Tree]:
        """Returns the weights of a model of `with_head`, as a checkpoint holds them."""
        params, stats = ({k: v for k, v in tree.items() if k != "head"} for tree in self._weights)
        params["head"] = head_params
        if head_stats:
            stats["head"] = head_stats
        return {"params": params, "stats": stats}

    @property
    def _weights(self) -> tuple[Tree, Tree]:
        return self.trained.params, self.trained.stats

    def _checksum(self) -> str:
        """Returns a SHA-256 of the backbone's weights and statistics."""
        checksum = hashlib.sha256()
        for path, leaf in sorted(_backbone_leaves(*self._weights).items()):
            array = np.ascontiguousarray(leaf)
            checksum.update(f"{path} {array.dtype} {array.shape}\n".encode())
            checksum.update(array.tobytes())
        return checksum.hexdigest()


def load_encoder(
    backbone: str, *, ema: bool, settings: Mapping[str, Any], dtype: str | None = None
) -> Encoder:
    """Loads a backbone, or draws fresh weights for a registered name.

    Args:
      backbone: A model's folder, a checkpoint in it, a PyTorch file, or a registered name.
      ema: Load the exponential moving average of the weights.
      settings: Preprocessing that replaces the backbone's own.
      dtype: Compute dtype; `None` takes the backbone's own, float32 for a registered name.

    Raises:
      MissingError: If there is no such file, folder or name.
      InputError, CheckpointError: See `noah_jax.load_model`.
    """
    path = expand_home(backbone)
    is_path = "://" in path or os.path.lexists(path)
    names = list_models()
    if not is_path and backbone in names:
        return Encoder(_draw(backbone, settings, dtype or "float32"), fresh=True)
    if not is_path and os.sep not in backbone:
        raise MissingError(
            f"there is no file, folder or model {backbone}{did_you_mean(backbone, names)}"
        )
    with working(f"loading {backbone}"):
        trained = load_one(path, ema=ema, settings=settings)
    trained.say_preprocessing()
    if dtype is not None:
        trained = dataclasses.replace(trained, model=_with_dtype(trained.model, dtype))
    return Encoder(trained, fresh=False)


def _with_dtype(model: Model, dtype: str) -> Model:
    other = create_model(model.name, **{**model.arguments, "dtype": dtype})
    other.mean, other.std = model.mean, model.std
    other.preprocessing, other.class_names = model.preprocessing, model.class_names
    return other


def _draw(name: str, settings: Mapping[str, Any], dtype: str) -> TrainedModel:
    model = create_model(name, dtype=dtype)
    with working(f"drawing the weights of {name}"):
        init = jax.jit(model.init, compiler_options=QUICK_COMPILE)
        params, stats = init(jax.random.key(0))
    describe_model(model, metadata={}, config={}, settings=settings, path=name)
    console.note(
        f"{name} has fresh random weights: what follows is a baseline, not a trained backbone"
    )
    return TrainedModel(
        path=name,
        step=0,
        ema=False,
        model=model,
        params=params,
        stats=stats,
        metadata={},
        config={},
    )


def _backbone_leaves(params: Tree, stats: Tree) -> dict[str, Any]:
    flat = flatten_dict({"params": params, "stats": stats}, sep="/")
    return {k: v for k, v in flat.items() if not k.startswith(("params/head/", "stats/head/"))}


def _backbone_shapes(params: Tree, stats: Tree) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in _backbone_leaves(params, stats).items()}


def _check_same(
    made: Mapping[str, tuple[int, ...]], there: Mapping[str, tuple[int, ...]], name: str
) -> None:
    differing = sorted(k for k in made.keys() | there.keys() if made.get(k) != there.get(k))
    if differing:
        key = differing[0]
        raise InputError(
            f"{name} with this head has another backbone: {key} is {made.get(key)} there and"
            f" {there.get(key)} in the weights"
        )
