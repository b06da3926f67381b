"""Optimizers, composed of optax, with PyTorch's semantics."""

import functools
from collections.abc import Collection, Mapping
from typing import Any

import jax
import optax

from noah_jax.errors import InputError


def decay_mask(params: Any, *, decay_all: bool, no_decay: Collection[str] = ()) -> Any:
    """Where weight decay applies: a tree of booleans like `params`.

    Args:
      params: nested dicts of anything with `.ndim`.
      decay_all: everywhere. If not, it spares biases, parameters of one dimension, and
        `no_decay`. A bias is one by its name, whatever its rank: NOAH's are
        `[head_num, num_classes]` here and have one dimension in PyTorch. All other
        parameters have PyTorch's rank.
      no_decay: paths of further parameters to spare, such as "pos_embed".
    """

    def decayed(path, leaf):
        keys = [part.key for part in path]
        spared = leaf.ndim <= 1 or keys[-1] == "bias" or "/".join(keys) in no_decay
        return decay_all or not spared

    return jax.tree_util.tree_map_with_path(decayed, params)


def make_optimizer(
    config: Mapping[str, Any],
    schedule: optax.Schedule,
    *,
    decay_all: bool,
    no_decay: Collection[str] = (),
    factors: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """SGD or AdamW as PyTorch computes them.

    SGD adds the decay to the gradient before the momentum and multiplies by the learning
    rate after it; AdamW's decay is decoupled and scaled by the learning rate. Clipping by the
    gradients' global norm comes first.

    Args:
      config: the `optim` section of the configuration.
      schedule: the learning rate by step.
      decay_all: the recipe's answer to what decays, see `decay_mask`; holds where the
        configuration's key of that name is None.
      no_decay: paths of the parameters that the recipe spares besides.
      factors: of the learning rate of single parameters, by path.

    Raises:
      ValueError: on an unknown name, or a limit that leaves no gradient.
    """
    if config["decay_all"] is not None:
        decay_all = config["decay_all"]
    mask = functools.partial(decay_mask, decay_all=decay_all, no_decay=no_decay)
    decay = optax.add_decayed_weights(config["weight_decay"], mask)
    limit = config["clip_grad_norm"]
    if limit is not None and limit <= 0:
        raise InputError(f"optim.clip_grad_norm={limit} must be above 0; None does not clip")
    clip = optax.identity() if limit is None else optax.clip_by_global_norm(limit)
    rate = optax.scale_by_learning_rate(schedule)
    if factors:
        rate = optax.chain(rate, _scale_paths(factors))
    if config["name"] == "sgd":
        return optax.chain(
            clip,
            decay,
            optax.trace(config["momentum"], nesterov=config["nesterov"]),
            rate,
        )
    if config["name"] == "adamw":
        return optax.chain(
            clip,
            optax.scale_by_adam(config["beta1"], config["beta2"], config["epsilon"]),
            decay,
            rate,
        )
    raise InputError(f"optim.name must be sgd or adamw, got {config['name']!r}")


def _scale_paths(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies the updates of some paths, decay included, as a learning rate does."""

    def scale(path, update):
        return update * factors.get("/".join(part.key for part in path), 1.0)

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates))
