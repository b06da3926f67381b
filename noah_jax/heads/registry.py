"""The table of classification heads, and how a backbone makes and applies its own."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from noah_jax.errors import InputError
from noah_jax.heads.linear import make_linear_head
from noah_jax.heads.noah.module import make_noah_head
from noah_jax.heads.spec import HeadInit, HeadSpec
from noah_jax.nn.dropout import Key

HeadMaker = Callable[[HeadSpec, int, HeadInit, nnx.Rngs], nnx.Module]

# Name of a head -> what makes it, called as `make(spec, in_features, init, rngs)`. A new head is
# a file beside this one and a row here.
HEADS: dict[str, HeadMaker] = {
    "linear": make_linear_head,
    "noah": make_noah_head,
}


def check_head(head: Any) -> None:
    """Checks that `head` is a registered name or a module.

    Raises:
      InputError: If it is neither; lists the registered names.
    """
    registered = isinstance(head, str) and head in HEADS
    if not registered and not isinstance(head, nnx.Module):
        names = ", ".join(map(repr, HEADS))
        raise InputError(f"head must be {names} or a flax.nnx.Module, got {head!r}")


def make_head(
    spec: HeadSpec,
    in_features: int,
    *,
    init: Mapping[str, HeadInit],
    rngs: nnx.Rngs,
) -> nnx.Module | None:
    """Makes the head of a backbone.

    Args:
      spec: The choice of the head.
      in_features: Channels of the backbone's last feature map.
      init: Initialisers by the name of the head; a head that is not there takes its own.
      rngs: Source of the initial weights.

    Returns:
      The head, or `None` if only the features are wanted.

    Raises:
      InputError: If the head does not fit the feature map.
    """
    if spec.features_only:
        return None
    if isinstance(spec.kind, nnx.Module):
        # A copy, because the caller's module must not share state with the model.
        return nnx.clone(spec.kind)
    return HEADS[spec.kind](spec, in_features, init.get(spec.kind, HeadInit()), rngs)


def apply_head(head: Any, features: jax.Array, *, train: bool, key: Key | None) -> jax.Array:
    """Computes the logits, or returns the features if there is no head."""
    return features if head is None else head(features, train=train, key=key)
