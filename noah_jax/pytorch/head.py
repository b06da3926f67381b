"""Creates models with the head that a state dict has, judging by its keys and shapes."""

import fractions
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from noah_jax.errors import ConversionError
from noah_jax.models import create_model, get_architecture, get_family
from noah_jax.models.base import Model
from noah_jax.models.family import Family
from noah_jax.models.registry import NOAH_PREFIX
from noah_jax.nn.ratio import ratio
from noah_jax.pytorch.mapping import expected_shapes
from noah_jax.pytorch.other_heads import create_with_other_head, other_head, take_options

StateDict = Mapping[str, np.ndarray]

# The arguments of `create_model` that concern the head alone.
HEAD_ARGUMENTS = ("num_classes", "head_num", "key_ratio", "head_split", "kv_split")

_LINEAR, _QUERY, _VALUE = (f"params/head/{layer}/kernel" for layer in ("linear", "query", "value"))


def model_name(base: str, kind: str | None) -> str:
    """Returns the registered name of an architecture with a kind of head."""
    return NOAH_PREFIX + base if kind == "noah" else base


def head_kind(state_dict: StateDict, family: Family) -> str | None:
    """Returns the kind of head that a state dict has; `None` if it has none."""
    if (kind := other_head(state_dict)) is not None:
        return kind
    linear, _, value = _head_keys(family)
    if value in state_dict:  # without the attention there is no query
        return "noah"
    return "linear" if linear in state_dict else None


def head_keys(family: Family) -> tuple[str, str]:
    """Returns the PyTorch keys of a linear head's kernel and of a NOAH head's query kernel."""
    return _head_keys(family)[:2]


def _head_keys(family: Family) -> tuple[str, str, str]:
    """Returns the keys of a linear head's kernel and of a NOAH head's kernels, query and value."""
    keys = {row.path: row.torch for row in family.table}
    return keys[_LINEAR], keys[_QUERY], keys[_VALUE]


def create_with_head(
    state_dict: StateDict,
    base: str,
    kind: str | None,
    backbone: dict[str, Any],
    given: dict[str, Any],
) -> Model:
    """Creates an architecture with the head that a state dict has.

    Args:
      state_dict: Arrays by the original's keys.
      base: Name of the architecture, without `noah_`.
      kind: The kind of head; `None` for none.
      backbone: The arguments of `create_model` for the backbone.
      given: The arguments of `create_model` for the head that the caller gives. They override
        what the shapes tell.

    Raises:
      ConversionError: If the kernels of a NOAH head do not have four axes, or do not tell N.
      ValueError: If no model has these arguments.
    """
    if kind is None:
        return create_model(base, **backbone, **given, features_only=True)
    if kind == "linear":
        head = _linear_arguments(state_dict, get_family(base)) | given
        return create_model(base, **backbone, **head)
    if kind != "noah":
        return create_with_other_head(state_dict, base, kind, backbone, given)
    given = dict(given)
    options = take_options("noah", given)
    if head_keys(get_family(base))[1] not in state_dict:
        options.setdefault("attention", "uniform")
    num_classes = _published_num_classes(state_dict, base)
    try:
        model = create_model(NOAH_PREFIX + base, **backbone, num_classes=num_classes)
    except ValueError:
        # The published N does not divide the channels. A linear head takes any number of them.
        model = create_model(base, **backbone, num_classes=num_classes)
    else:
        published = model
        if options:
            published = create_model(
                model.name, **backbone, num_classes=num_classes, head_options=options
            )
        if not given and _fits(state_dict, published):
            return published
    head = _noah_arguments(state_dict, base, _channels(model), given) | given
    return create_model(NOAH_PREFIX + base, **backbone, **head, head_options=options)


def _linear_arguments(state_dict: StateDict, family: Family) -> dict[str, Any]:
    weight = state_dict.get(head_keys(family)[0])
    if weight is None or weight.ndim != 2:
        return {}
    return {"num_classes": weight.shape[0]}


def _published_num_classes(state_dict: StateDict, base: str) -> int:
    """Returns the number of classes if N is the published one."""
    rows = state_dict[_head_keys(get_family(base))[2]].shape[:1] or (0,)
    return max(rows[0] // get_architecture(base).head_num, 1)


def _fits(state_dict: StateDict, model: Model) -> bool:
    """Says whether a state dict has the head of a model."""
    head = {"params": {"head": model.abstract()[0]["head"]}}
    shapes = expected_shapes(head, get_family(model.name).table)
    return all(_shape(state_dict, key) == shape for key, shape in shapes.items())


def _channels(model: Model) -> int:
    """Returns the number of channels that the head of a model takes."""
    head = model.abstract()[0]["head"]
    if "linear" in head:
        return head["linear"]["kernel"].shape[0]
    return sum(math.prod(head[part]["kernel"].shape[:2]) for part in ("query", "value"))


def _noah_arguments(
    state_dict: StateDict, base: str, channels: int, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Computes N, r and the number of classes from the kernels of a NOAH head.

    With `head_split` and `kv_split`, the kernels are `[N*K, C_k/N, 1, 1]` and
    `[N*K, C_v/N, 1, 1]`, where C_k + C_v = `channels`, so they tell N. Otherwise N must be given.

    Returns:
      The arguments, or `{}` if the head belongs to another backbone or has other switches. The
      published head then serves to list the differences.
    """
    _, query_key, value_key = _head_keys(get_family(base))
    if query_key not in state_dict:
        return _arguments_without_query(_shape(state_dict, value_key), base, channels, given)
    query, value = _shape(state_dict, query_key), _shape(state_dict, value_key)
    if len(query) != 4 or len(value) != 4 or not query[1] or not value[1]:
        raise ConversionError(
            f"{query_key} and {value_key} have shapes {query} and {value},"
            " expected [N*K, channels/N, 1, 1]"
        )
    head_split, kv_split = given.get("head_split", True), given.get("kv_split", True)
    if head_split and kv_split:
        head_num = given.get("head_num", fractions.Fraction(channels, query[1] + value[1]))
    elif "head_num" in given:
        head_num = given["head_num"]
    else:
        raise ConversionError(
            "without head_split or kv_split the shapes do not tell N; give --set head_num=N"
        )
    if head_num < 1 or query[0] % head_num or int(head_num) != head_num:
        return {}
    head_num = int(head_num)
    arguments: dict[str, Any] = {"head_num": head_num, "num_classes": query[0] // head_num}
    if kv_split:
        query_channels = query[1] * (head_num if head_split else 1)
        arguments["key_ratio"] = _key_ratio(base, channels, query_channels)
    return arguments


def _arguments_without_query(
    value: tuple[int, ...], base: str, channels: int, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Computes r and the number of classes of a NOAH head that has no attention, from a given N.

    The channels that the value does not have would be the query's.
    """
    if "head_num" not in given:
        raise ConversionError(
            "without the query of a NOAH head the shapes do not tell N; give --set head_num=N"
        )
    head_num = given["head_num"]
    if len(value) != 4 or head_num < 1 or value[0] % head_num:
        return {}
    arguments: dict[str, Any] = {"num_classes": value[0] // head_num}
    if given.get("kv_split", True):
        value_channels = value[1] * (head_num if given.get("head_split", True) else 1)
        arguments["key_ratio"] = _key_ratio(base, channels, channels - value_channels)
    return arguments


def _key_ratio(base: str, channels: int, query_channels: int) -> float:
    """Returns the r with which the query has so many channels: the published one if it fits."""
    published = get_architecture(base).key_ratio
    fits = int(channels * published) == query_channels
    return published if fits else ratio(channels, query_channels)


def _shape(state_dict: StateDict, key: str) -> tuple[int, ...]:
    return state_dict[key].shape if key in state_dict else ()
