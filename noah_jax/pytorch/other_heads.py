"""Converts the heads beside linear and NOAH: their names in PyTorch, and what these tell.

The names are this package's own. A kernel `head/a/b/kernel` is `head.a.b.weight`, whose last two
axes are turned round, as `torch.nn.Linear` stores it; a norm's `scale` is its `weight`; everything
else keeps its name and layout.
"""

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict

from noah_jax.config import head_key
from noah_jax.errors import ConversionError
from noah_jax.heads.registry import HEADS, complete_options
from noah_jax.heads.spec import HeadInit, HeadSpec
from noah_jax.models import create_model, get_family
from noah_jax.models.base import Model, Tree
from noah_jax.models.conversion import Row, Transform
from noah_jax.nn.modules import split_module, state_to_tree
from noah_jax.pytorch.mapping import expected_shapes

StateDict = Mapping[str, np.ndarray]

ORIGINAL_HEADS = ("linear", "noah")  # those with names of the original, in the families' tables
_ORIGINAL_KEYS = tuple(
    frozenset(f"head.{part}{leaf}" for part in parts for leaf in ("weight", "bias"))
    for parts in (("",), ("N.",), ("query.", "value."))
)
_IN_HEAD = "params/head/"
_WIDTH = 64  # channels of a map on which a head is made to see its keys


def table_of(model: Model) -> list[Row]:
    """Returns the conversion table of a model with any head: its family's, with the head's rows."""
    table = list(get_family(model.name).table)
    if model.arguments["head"] in ORIGINAL_HEADS or model.arguments["features_only"]:
        return table
    backbone = [row for row in table if not (row.path or "").startswith(_IN_HEAD)]
    return [*backbone, *_rows(model.abstract()[0]["head"])]


def _rows(head: Tree) -> Iterator[Row]:
    for path in flatten_dict(head, sep="/"):
        *layers, name = path.split("/")
        torch_name = "weight" if name in ("kernel", "scale") else name
        transform: Transform = "linear" if name == "kernel" else "same"
        yield Row(".".join(["head", *layers, torch_name]), _IN_HEAD + path, transform)


def other_head(state_dict: StateDict) -> str | None:
    """Returns which head beside linear and NOAH a state dict has; `None` if it has none."""
    keys = frozenset(_unnumbered(key for key in state_dict if key.startswith("head.")))
    if not keys or keys in _ORIGINAL_KEYS:
        return None  # making all the other heads takes longer than all else
    others = (kind for kind in HEADS if kind not in ORIGINAL_HEADS)
    return next((kind for kind in others if keys == _keys(kind)), None)


@functools.cache
def _keys(kind: str) -> frozenset[str]:
    return frozenset(_unnumbered(row.torch for row in _rows(_head(kind, {}, num_classes=2))))


def _unnumbered(keys: Iterable[str]) -> Iterator[str]:
    """Leaves out the numbers of layers, because an option may say how many there are."""
    return (re.sub(r"\.\d+(?=\.)", ".N", key) for key in keys)


def _head(kind: str, options: Mapping[str, Any], *, num_classes: int) -> Tree:
    """Returns the parameters of a head alone, as shapes."""
    complete = complete_options(kind, options)
    spec = HeadSpec(kind, num_classes, head_num=1, key_ratio=0.5, options=complete)
    make = HEADS[kind].make
    module = nnx.eval_shape(lambda: make(spec, _WIDTH, HeadInit(), nnx.Rngs(params=0)))
    return state_to_tree(split_module(module)[1])


def take_options(kind: str, given: dict[str, Any]) -> dict[str, Any]:
    """Takes the options of a kind of head out of what the caller gives, such as "head.csra.lam"."""
    keys = {option: head_key(kind, option) for option in HEADS[kind].options}
    return {option: given.pop(key) for option, key in keys.items() if key in given}


def create_with_other_head(
    state_dict: StateDict, base: str, kind: str, backbone: dict[str, Any], given: dict[str, Any]
) -> Model:
    """Creates an architecture with a head beside linear and NOAH.

    Args:
      state_dict: Arrays by the original's keys.
      base: Name of the architecture, without `noah_`.
      kind: The kind of head.
      backbone: The arguments of `create_model` for the backbone.
      given: Those for the head that the caller gives, and options by their keys in the
        configuration, such as "head.csra.lam".

    Raises:
      ConversionError: If the weights do not fit these options.
      ValueError: If no model has these arguments.
    """
    given = dict(given)
    options = take_options(kind, given)
    head = {"num_classes": _num_classes(state_dict, kind, options)} | given
    model = create_model(base, **backbone, **head, head=kind, head_options=options)
    expected = expected_shapes({"params": {"head": model.abstract()[0]["head"]}}, table_of(model))
    for key, shape in expected.items():
        if key in state_dict and state_dict[key].shape != shape:
            wanted = ", ".join(f"{k}={x}" for k, x in model.arguments["head_options"].items())
            keys = " ".join(f"{head_key(kind, option)}=..." for option in HEADS[kind].options)
            raise ConversionError(
                f"{key} has shape {state_dict[key].shape}, and a {kind} head with {wanted} needs"
                f" {shape}; give the options of its training: --set {keys}"
            )
    return model


def _num_classes(state_dict: StateDict, kind: str, options: Mapping[str, Any]) -> int:
    """Returns the number of classes: the one length that grows as fast as they do."""
    few, many = 101, 203
    shapes = [
        expected_shapes({"params": {"head": head}}, list(_rows(head)))
        for head in (_head(kind, options, num_classes=n) for n in (few, many))
    ]
    for key, shape in shapes[0].items():
        for axis, lengths in enumerate(zip(shape, shapes[1][key], strict=True)):
            if lengths == (few, many) and np.ndim(state_dict[key]) == len(shape):
                return state_dict[key].shape[axis]
    raise ConversionError(f"the keys of a {kind} head do not tell the number of classes")


def options_not_told(model: Model, given: Mapping[str, Any]) -> str | None:
    """Says which options of a head have their published values because nothing tells them.

    Args:
      model: The model that was found.
      given: What the caller or the file's metadata gives.
    """
    kind, options = model.arguments["head"], model.arguments["head_options"]
    learnt = model.abstract()[0].get("head", {})
    open_ = {k: x for k, x in options.items() if k not in learnt and head_key(kind, k) not in given}
    if not open_ or kind in ORIGINAL_HEADS:
        return None
    values = ", ".join(f"{key}={value}" for key, value in open_.items())
    return (
        f"the file does not tell the {kind} head's options: taken as {values}"
        f" (--set {head_key(kind, next(iter(open_)))}=... changes one)"
    )


def options_for_metadata(model: Model) -> dict[str, str]:
    """Returns what a file has to say of the head beside its weights; empty if they tell all."""
    kind, options = model.arguments["head"], model.arguments["head_options"]
    published = HEADS[kind].options if kind in HEADS else {}
    if not options or (kind in ORIGINAL_HEADS and options == published):
        return {}
    return {"head_options": json.dumps({head_key(kind, k): x for k, x in options.items()})}


def options_in_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what `options_for_metadata` has written into a file; empty if nothing."""
    header = metadata.get("metadata")
    text = header.get("head_options") if isinstance(header, Mapping) else None
    try:
        options = json.loads(text) if isinstance(text, str) else {}
    except json.JSONDecodeError:
        return {}
    return options if isinstance(options, dict) else {}
