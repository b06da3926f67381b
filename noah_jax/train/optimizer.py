"""Composes optimizers from optax that compute what PyTorch's do."""

import fnmatch
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from noah_jax.errors import InputError


def decay_mask(
    params: Any,
    *,
    decay_all: bool,
    no_decay: Collection[str] = (),
    never_decay: Collection[str] = (),
) -> Any:
    """Returns where weight decay applies, as a tree of booleans like `params`.

    Args:
      params: Nested dicts of arrays or anything else with `.ndim`.
      decay_all: Whether to decay every parameter. If not, biases, one-dimensional parameters and
        those in `no_decay` are spared. A bias is recognised by its name: NOAH's are
        `[head_num, num_classes]` here and have one dimension in PyTorch. All other
        parameters have PyTorch's rank.
      no_decay: Paths of more parameters to spare, such as "pos_embed".
      never_decay: Paths of parameters that are spared even with `decay_all`, patterns as in a
        shell.
    """

    def decayed(path: tuple[Any, ...], leaf: Any) -> bool:
        keys = [part.key for part in path]
        own = "/".join(keys)
        spared = leaf.ndim <= 1 or keys[-1] == "bias" or own in no_decay
        never = any(fnmatch.fnmatchcase(own, pattern) for pattern in never_decay)
        return not never and (decay_all or not spared)

    return jax.tree_util.tree_map_with_path(decayed, params)


def make_optimizer(
    section: Mapping[str, Any],
    schedule: optax.Schedule,
    *,
    decay_all: bool,
    no_decay: Collection[str] = (),
    never_decay: Collection[str] = (),
    factors: Mapping[str, float] | None = None,
    momentum: optax.Schedule | None = None,
) -> optax.GradientTransformation:
    """Makes SGD, Adam or AdamW as PyTorch computes them.

    Clipping by the gradients' global norm comes first. SGD adds the decay to the gradient before
    the momentum, and multiplies by the learning rate after it. Adam adds the decay to the gradient
    too. AdamW's decay is decoupled and scaled by the learning rate.

    Args:
      section: The section `optim` of the configuration.
      schedule: The learning rate by step.
      decay_all: Whether the model's recipe decays every parameter, see `decay_mask`. It counts
        if the key of that name in the section is None.
      no_decay: Paths of more parameters that the recipe spares.
      never_decay: Paths of parameters that no recipe decays.
      factors: Factors of the learning rate of single parameters, by path.
      momentum: The momentum by step, beta1 for Adam and AdamW; by default what the section says.

    Raises:
      InputError: If the optimizer's name is unknown, or the clipping leaves no gradient.
    """
    if section["decay_all"] is not None:
        decay_all = section["decay_all"]
    mask = functools.partial(
        decay_mask, decay_all=decay_all, no_decay=no_decay, never_decay=never_decay
    )
    decay = optax.add_decayed_weights(section["weight_decay"], mask)
    limit = section["clip_grad_norm"]
    if limit is not None and limit <= 0:
        raise InputError(f"optim.clip_grad_norm={limit} must be above 0; None does not clip")
    clip = optax.identity() if limit is None else optax.clip_by_global_norm(limit)
    rate = optax.scale_by_learning_rate(schedule)
    if factors:
        rate = optax.chain(rate, _scale_paths(factors))
    if section["name"] == "sgd":
        trace = functools.partial(optax.trace, nesterov=section["nesterov"])
        return optax.chain(clip, decay, _by_momentum(trace, section["momentum"], momentum), rate)
    if section["name"] in ("adam", "adamw"):
        scale = functools.partial(optax.scale_by_adam, b2=section["beta2"], eps=section["epsilon"])
        adam = _by_momentum(scale, section["beta1"], momentum)
        if section["name"] == "adam":
            return optax.chain(clip, decay, adam, rate)
        return optax.chain(clip, adam, decay, rate)
    raise InputError(f"optim.name must be sgd, adam or adamw, got {section['name']!r}")


class _MomentumState(NamedTuple):
    """The state of a transformation whose momentum changes with the step.

    Attributes:
      step: Number of steps so far, int32 `[]`.
      inner: The state of the transformation.
    """

    step: jax.Array
    inner: optax.OptState


def _by_momentum(
    make: Callable[[Any], optax.GradientTransformation],
    constant: float,
    schedule: optax.Schedule | None,
) -> optax.GradientTransformation:
    """Makes a transformation of its momentum, which is the same in each step or has a schedule."""
    if schedule is None:
        return make(constant)

    def update(updates: Any, state: _MomentumState, params: Any = None) -> Any:
        updates, inner = make(schedule(state.step)).update(updates, state.inner, params)
        return updates, _MomentumState(state.step + 1, inner)

    def init(params: Any) -> _MomentumState:
        return _MomentumState(jnp.zeros((), jnp.int32), make(constant).init(params))

    return optax.GradientTransformation(init, update)


def _scale_paths(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies the updates of some paths, weight decay included, as a learning rate does."""

    def scale(path: tuple[Any, ...], update: Any) -> Any:
        return update * factors.get("/".join(part.key for part in path), 1.0)

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates))
