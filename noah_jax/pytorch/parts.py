"""Finds the part of a state dict that is a model of this package, whatever stands around it.

Wrappers put names in front of the model's keys (`backbone.`, `encoder.`), and training programs
keep other modules beside it (`criterion.`). What is left out is always said.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from noah_jax.errors import ConversionError
from noah_jax.models import FAMILIES
from noah_jax.models.family import Family
from noah_jax.models.shapes import Shapes
from noah_jax.pytorch.mapping import match
from noah_jax.pytorch.renames import rename

StateDict = Mapping[str, np.ndarray]

# Fraction of the backbone's keys that a family's table must know for a file to be of that family.
_MIN_KNOWN = 0.5
_MAX_DEPTH = 6  # names in front of the model's keys
_MAX_LISTED = 3


class Part(NamedTuple):
    """The model's part of a state dict.

    Attributes:
      state_dict: Its arrays, without the prefix.
      families: The families whose tables know most of its keys; none if they know too few.
      notes: Sentences on the prefix and on what is left out.
    """

    state_dict: dict[str, np.ndarray]
    families: list[Family]
    notes: tuple[str, ...] = ()


def find_part(state_dict: StateDict, beside: Collection[str] = ()) -> Part:
    """Finds the keys of the model and takes the names off that they all start with.

    Args:
      state_dict: Arrays by key.
      beside: Keys that the file keeps beside the model, such as a loss's. They are the model's all
        the same if its table knows them, as a head beside the backbone.

    Returns:
      The part. It is the whole state dict if no part of it is of any family.

    Raises:
      ConversionError: If there are several such parts.
    """
    if nearest := families(state_dict):
        there = [key for key in beside if key in state_dict]
        left_out = [key for key in there if not _is_known(key, state_dict, nearest)]
        kept = {key: value for key, value in state_dict.items() if key not in left_out}
        return Part(kept, nearest, _left_out(left_out))
    for depth in range(1, _MAX_DEPTH + 1):
        inside = _by_prefix(state_dict, depth)
        models = {prefix: found for prefix, part in inside.items() if (found := families(part))}
        if len(models) > 1:
            raise ConversionError(
                f"there are several models, under {', '.join(models)};"
                f" --prefix {next(iter(models))} takes the first"
            )
        for prefix, nearest in models.items():
            return _part_under(prefix, inside[prefix], nearest, state_dict)
    return Part(dict(state_dict), [])


def families(state_dict: StateDict) -> list[Family]:
    """Returns the families whose tables know most of the keys; none if they know too few."""
    names = {name: _known(state_dict, family) for name, family in FAMILIES.items()}
    # A head alone is no model.
    known = {x: len(there) for x, there in names.items() if not all(map(_in_head, there))}
    most = max(known.values(), default=0)
    backbone = sum(not key.startswith("head.") for key in state_dict)
    if most < max(_MIN_KNOWN * backbone, 1):
        return []
    nearest = [FAMILIES[name] for name, count in known.items() if count == most]
    return [family for family in nearest if is_any_kind(state_dict, family)] or nearest


def backbone_of(part: Part) -> Part:
    """Takes the backbone alone: the keys that a family's table has outside its head."""
    kept = {
        key: value
        for key, value in part.state_dict.items()
        if any(_in_backbone(key, value, family) for family in part.families)
    }
    left_out = [key for key in part.state_dict if key not in kept]
    return Part(kept, part.families, (*part.notes, *_left_out(left_out)))


def _in_backbone(key: str, value: np.ndarray, family: Family) -> bool:
    names = rename({key: value}, family)
    return any(
        match(row.torch, name) is not None and not (row.path or "").startswith("params/head/")
        for row in family.table
        for name in names
    )


def _known(state_dict: StateDict, family: Family) -> list[str]:
    """Returns the keys, by the original's names, that a family's table has."""
    keys = rename(state_dict, family)
    return [key for key in keys if any(match(row.torch, key) is not None for row in family.table)]


def _in_head(name: str) -> bool:
    return name.startswith(("head.", "classifier."))


def _is_known(key: str, state_dict: StateDict, nearest: Sequence[Family]) -> bool:
    """Says whether a model of one of the families has a key."""
    return any(_known({key: state_dict[key]}, family) for family in nearest)


def is_any_kind(state_dict: StateDict, family: Family) -> bool:
    """Says whether a state dict has the kind of blocks of one of a family's architectures."""
    shapes = Shapes(rename(state_dict, family))
    return any(family.is_kind(shapes, x) for x in family.architectures.values())


def _by_prefix(state_dict: StateDict, depth: int) -> dict[str, dict[str, np.ndarray]]:
    """Sorts the keys by their first names; they lose these."""
    parts: dict[str, dict[str, np.ndarray]] = {}
    for key, value in state_dict.items():
        names = key.split(".")
        if len(names) > depth:
            prefix = ".".join(names[:depth]) + "."
            parts.setdefault(prefix, {})[".".join(names[depth:])] = value
    return parts


def _part_under(
    prefix: str, inside: dict[str, np.ndarray], nearest: list[Family], state_dict: StateDict
) -> Part:
    """Takes the keys under a prefix, and a head that stands beside it."""
    part, left_out = dict(inside), []
    for key, value in state_dict.items():
        if key.startswith(prefix):
            continue
        # `head.query.weight` beside `backbone.`, or `head.fc.weight`, whose own name is `fc`.
        names = (key, key.partition(".")[2])
        name = next((x for x in names if x not in part and _is_head(x, value, nearest)), None)
        if name is None:
            left_out.append(key)
        else:
            part[name] = value
    where = "all keys" if len(inside) == len(state_dict) else "the model's keys"
    return Part(part, nearest, (f"{prefix} in front of {where} is left out", *_left_out(left_out)))


def _is_head(key: str, value: np.ndarray, nearest: Sequence[Family]) -> bool:
    """Says whether a key is that of a head in one of the families."""
    return any(_in_head(name) for family in nearest for name in _known({key: value}, family))


def _left_out(keys: Collection[str]) -> tuple[str, ...]:
    if not keys:
        return ()
    listed = ", ".join(list(keys)[:_MAX_LISTED]) + (", ..." if len(keys) > _MAX_LISTED else "")
    return (f"{len(keys)} key(s) beside the model are left out: {listed}",)
