"""The table of classification heads, and how a backbone makes and applies its own."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from noah_jax.errors import InputError, did_you_mean
from noah_jax.heads.class_attention import (
    CLASS_ATTENTION_OPTIONS,
    ClassAttentionHead,
    count_class_attention_params,
)
from noah_jax.heads.csra import CSRA_OPTIONS, CSRAHead, count_csra_params
from noah_jax.heads.ep import EP_OPTIONS, EPHead, count_ep_params
from noah_jax.heads.gem import GEM_OPTIONS, GeMHead, count_gem_params
from noah_jax.heads.linear import count_linear_params, make_linear_head
from noah_jax.heads.map import MAP_OPTIONS, MAPHead, count_map_params
from noah_jax.heads.ml_decoder import (
    ML_DECODER_OPTIONS,
    MLDecoderHead,
    count_ml_decoder_params,
)
from noah_jax.heads.noah.module import NOAH_OPTIONS, count_noah_params, make_noah_head
from noah_jax.heads.simpool import SIMPOOL_OPTIONS, SimPoolHead, count_simpool_params
from noah_jax.heads.spec import HeadInit, HeadSpec
from noah_jax.nn.dropout import Key


@dataclasses.dataclass(frozen=True)
class HeadKind:
    """Everything this package knows of a kind of head.

    Attributes:
      make: Makes the module, called as `make(spec, in_features, init, rngs)`.
      count_params: The number of its parameters by a formula, called as
        `count_params(spec, in_features)`.
      options: The arguments of its own that `create_model` takes in `head_options`, with their
        published defaults. `config.head` has a section of the head's name with the same keys
        (NOAH's stand in `config.head` itself).
      never_decay: Paths of its parameters, without `head/`, that weight decay spares in every
        recipe, as the head was published; patterns as in a shell.
      draws: What its module computes for chosen classes: "attention" and, where the logits are
        sums over positions, "contributions", each a method of that name.
      shared_attention: Whether all classes have the same attention.
    """

    make: Callable[[HeadSpec, int, HeadInit, nnx.Rngs], nnx.Module]
    count_params: Callable[[HeadSpec, int], int]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    never_decay: tuple[str, ...] = ()
    draws: tuple[str, ...] = ()
    shared_attention: bool = False


_ATTENTION, _BOTH = ("attention",), ("attention", "contributions")


# A new head is a file beside this one, a row here, and a section of `config.head`.
HEADS: dict[str, HeadKind] = {
    "linear": HeadKind(make_linear_head, count_linear_params),
    "noah": HeadKind(make_noah_head, count_noah_params, NOAH_OPTIONS, draws=_BOTH),
    "gem": HeadKind(GeMHead.of_spec, count_gem_params, GEM_OPTIONS, never_decay=("p",)),
    "map": HeadKind(
        MAPHead.of_spec,
        count_map_params,
        MAP_OPTIONS,
        never_decay=("latent",),
        draws=_ATTENTION,
        shared_attention=True,
    ),
    "csra": HeadKind(CSRAHead.of_spec, count_csra_params, CSRA_OPTIONS, draws=_BOTH),
    "simpool": HeadKind(
        SimPoolHead.of_spec,
        count_simpool_params,
        SIMPOOL_OPTIONS,
        draws=_ATTENTION,
        shared_attention=True,
    ),
    "ep": HeadKind(
        EPHead.of_spec,
        count_ep_params,
        EP_OPTIONS,
        never_decay=("queries",),
        draws=_ATTENTION,
        shared_attention=True,
    ),
    "ml_decoder": HeadKind(
        MLDecoderHead.of_spec,
        count_ml_decoder_params,
        ML_DECODER_OPTIONS,
        never_decay=("query_embed",),
        draws=_ATTENTION,
    ),
    "class_attention": HeadKind(
        ClassAttentionHead.of_spec,
        count_class_attention_params,
        CLASS_ATTENTION_OPTIONS,
        never_decay=("cls_token", "blocks/*/gamma_*"),
        draws=_ATTENTION,
        shared_attention=True,
    ),
}


def check_head(head: Any) -> None:
    """Checks that `head` is a registered name or a module.

    Raises:
      InputError: If it is neither; lists the registered names.
    """
    registered = isinstance(head, str) and head in HEADS
    if not registered and not isinstance(head, nnx.Module):
        names = ", ".join(map(repr, HEADS))
        near = did_you_mean(head, HEADS) if isinstance(head, str) else ""
        raise InputError(f"head must be {names} or a flax.nnx.Module, got {head!r}{near}")


def complete_options(head: str | nnx.Module, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns all options of a head: those that are given, and the published defaults.

    Args:
      head: A registered name, or a module, which has no options.
      given: Options by name; their values are checked when the head is made.

    Raises:
      InputError: If the head has no such option; names those that it has.
    """
    options = dict(HEADS[head].options) if isinstance(head, str) else {}
    for key in given or {}:
        if key not in options:
            what = f"a {head} head" if isinstance(head, str) else f"the head {type(head).__name__}"
            known = f"it takes {', '.join(options)}" if options else "it takes none"
            raise InputError(f"{what} takes no option {key!r}{did_you_mean(key, options)}; {known}")
    return options | dict(given or {})


def unpublished_options(head: str, options: Mapping[str, Any]) -> str:
    """Returns the options of a head that are not the published ones, such as "lam=0.2".

    Args:
      head: A registered name, or the name of the class of a head of one's own, which has none.
      options: All options of the head.
    """
    published = HEADS[head].options if head in HEADS else {}
    return ", ".join(f"{key}={x}" for key, x in options.items() if x != published.get(key))


def heads_that_draw(what: str) -> str:
    """Lists the names of the heads whose rows say that they draw "attention" or "contributions"."""
    return ", ".join(name for name, kind in HEADS.items() if what in kind.draws)


def never_decay(head: str) -> tuple[str, ...]:
    """Returns paths in a model's parameters that weight decay spares in every recipe.

    Args:
      head: A registered name, or the name of the class of a head of one's own.
    """
    return tuple(f"head/{path}" for path in HEADS[head].never_decay) if head in HEADS else ()


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
      init: The backbone's initialisers for "linear" and "noah"; a head that is not there takes its
        own. The last layer of every other head starts as the linear head does, unless the head was
        published with an initialiser.
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
    start = init.get(spec.kind if spec.kind == "noah" else "linear", HeadInit())
    return HEADS[spec.kind].make(spec, in_features, start, rngs)


def apply_head(head: Any, features: jax.Array, *, train: bool, key: Key | None) -> jax.Array:
    """Computes the logits, or returns the features if there is no head."""
    return features if head is None else head(features, train=train, key=key)
