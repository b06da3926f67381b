"""Which registered model a state dict belongs to, from its keys and shapes."""

import dataclasses
import difflib
import fractions
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from noah_jax.errors import ConversionError
from noah_jax.models import (
    FAMILIES,
    architectures,
    create_model,
    get_architecture,
    get_family,
    list_models,
)
from noah_jax.models.base import Model
from noah_jax.models.conversion import Row
from noah_jax.models.family import Family, Positions
from noah_jax.models.registry import NOAH_PREFIX
from noah_jax.models.shapes import Shapes, ratio
from noah_jax.pytorch.dimensions import StateDict, attention_heads, nearest
from noah_jax.pytorch.mapping import expected_shapes, match
from noah_jax.pytorch.renames import rename

_LINEAR, _QUERY = "params/head/linear/kernel", "params/head/query/kernel"
_HEAD = "params/head/"
# Of the file's keys, the share that a family's table must know for the file to be its.
_KNOWN = 0.5


@dataclasses.dataclass(frozen=True)
class Found:
    """A model and the state dict that is its.

    Attributes:
      model: the model, with every argument that the shapes told.
      state_dict: arrays by the original's names.
      notes: sentences on what the file does not tell.
    """

    model: Model
    state_dict: dict[str, np.ndarray]
    notes: tuple[str, ...]


def find_model(
    state_dict: StateDict,
    *,
    name: str | None = None,
    hint: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Found:
    """The model of a state dict.

    Args:
      state_dict: arrays by key, without prefixes such as `module.`.
      name: the registered name; `None` finds it.
      hint: what the file calls the model; decides between models of one architecture, and
        which one a model of dimensions that nobody published is named after.
      arguments: of `create_model`; they override what the shapes tell. With `name`, they have
        every dimension that is not the published one.

    Raises:
      ConversionError: if no registered model fits, in one line that names the nearest.
      ValueError: if `name` or an argument is none.
    """
    given = dict(arguments or {})
    if name is not None:
        family = get_family(name)
        renamed = rename(state_dict, family)
        kind = _head_kind(renamed, family)
        if kind is not None and name != (right := _name(name.removeprefix(NOAH_PREFIX), kind)):
            raise ConversionError(
                f"the file has a {kind} head, which {name} has not; --model {right} has it"
            )
        model = _create(renamed, name.removeprefix(NOAH_PREFIX), kind or "linear", given)[0]
        return Found(model, renamed, ())

    misfits = []
    for family in _families(state_dict):
        renamed = rename(state_dict, family)
        kind = _head_kind(renamed, family)
        if kind is None:
            raise ConversionError(
                f"no head in the state dict, though its other keys are those of {family.name}"
                f" models: {_head_key(family, _LINEAR)} or {_head_key(family, _QUERY)} expected"
            )
        base, sizes = nearest(renamed, family, _bare(hint))
        heads = attention_heads(base, sizes)
        try:
            model, problems = _create(renamed, base, kind, {**sizes, **heads, **given})
        except ValueError as error:
            if not sizes:
                raise
            told = ", ".join(f"{key}={value}" for key, value in sizes.items())
            raise ConversionError(f"no model has the file's {told}: {error}") from error
        if not problems:
            return _choose(model, renamed, base, kind, hint, given, sizes)
        misfits.append((len(problems), _with(model, sizes), problems[0]))
    if not misfits:
        keys = ", ".join(list(state_dict)[:3])
        raise ConversionError(
            f"the keys ({keys}, ...; {len(state_dict)} in all) are those of no registered family"
            f" ({', '.join(FAMILIES)}); a model of another kind cannot be converted"
        )
    near = [f"{model} ({problem}; {n} problem(s))" for n, model, problem in sorted(misfits)[:3]]
    raise ConversionError(
        f"no registered model fits the shapes; nearest: {'; '.join(near)};"
        " --model NAME lists every problem with one"
    )


def _families(state_dict: StateDict) -> list[Family]:
    """The families whose tables know most of the keys."""
    known = {}
    for name, family in FAMILIES.items():
        keys = rename(state_dict, family)
        known[name] = sum(
            any(match(row.torch, key) is not None for row in family.table) for key in keys
        )
    best = max(known.values(), default=0)
    if best < _KNOWN * len(state_dict):
        return []
    return [FAMILIES[name] for name, count in known.items() if count == best]


def _same(name: str) -> str:
    """Equal for architectures that have the same weights."""
    build = get_architecture(name).build
    # A layer scale is only where training starts from.
    keywords = {key: _without_start(value) for key, value in build.keywords.items()}
    return repr((build.func, sorted(keywords.items())))


def _without_start(value: Any) -> str:
    if hasattr(value, "keywords"):
        kept = {k: v for k, v in value.keywords.items() if k != "layer_scale"}
        return repr((value.func, sorted(kept.items())))
    return repr(value)


def _name(base: str, kind: str) -> str:
    return NOAH_PREFIX + base if kind == "noah" else base


def _head_key(family: Family, path: str) -> str:
    """The PyTorch key of a part of the head."""
    return next(row.torch for row in family.table if row.ours == path)


def _head_kind(state_dict: StateDict, family: Family) -> str | None:
    if _head_key(family, _QUERY) in state_dict:
        return "noah"
    return "linear" if _head_key(family, _LINEAR) in state_dict else None


def _create(
    state_dict: StateDict, base: str, kind: str, given: dict[str, Any]
) -> tuple[Model, list[str]]:
    """An architecture with the file's head, and where the rest of the file differs from it."""
    family = get_family(base)
    arguments = _backbone_arguments(state_dict, family, given)
    if kind == "linear":
        weight = state_dict.get(_head_key(family, _LINEAR))
        if weight is not None and weight.ndim == 2:
            arguments["num_classes"] = weight.shape[0]
    else:
        published, fits = _published_head(state_dict, base, {**arguments, **_backbone_only(given)})
        if fits and _backbone_only(given) == given:
            return published, _differences(state_dict, published, family)
        arguments |= _noah_arguments(state_dict, _channels(published), base, given)
    model = create_model(_name(base, kind), **{**arguments, **given})
    return model, _differences(state_dict, model, family)


def _published_head(
    state_dict: StateDict, base: str, arguments: dict[str, Any]
) -> tuple[Model, bool]:
    """An architecture with its published N and r, and whether the file's head is that.

    With a linear head, which any number of channels can have, where they cannot have those.
    """
    family, head_num = get_family(base), get_architecture(base).head_num
    rows = np.shape(state_dict[_head_key(family, _QUERY)])[:1] or (0,)
    num_classes = max(rows[0] // head_num, 1)
    arguments = {**arguments, "num_classes": num_classes}
    try:
        model = create_model(NOAH_PREFIX + base, **arguments)
    except ValueError:  # the published N does not divide these channels
        return create_model(base, **arguments), False
    head = expected_shapes({"params": {"head": model.abstract()[0]["head"]}}, family.table)
    return model, all(np.shape(state_dict.get(key)) == shape for key, shape in head.items())


def _differences(state_dict: StateDict, model: Model, family: Family) -> list[str]:
    """Where the file differs from a model, their heads apart."""
    table = family.table
    theirs = {
        key: value.shape
        for key, value in state_dict.items()
        if not any(row.ours is None and match(row.torch, key) is not None for row in table)
    }
    ours = expected_shapes(_backbone(model), table)
    heads = {row.torch for row in table if _is_head(row)}
    problems = []
    for key in ours.keys() | theirs.keys() - heads:
        if theirs.get(key) != ours.get(key):
            found = f"shape {theirs[key]}" if key in theirs else "nothing"
            needs = f"shape {ours[key]}" if key in ours else "nothing"
            problems.append(f"{key}: {found} in the file, {needs} in the model")
    return sorted(problems)


def _backbone_only(given: dict[str, Any]) -> dict[str, Any]:
    heads = ("num_classes", "head_num", "key_ratio", "head_split", "kv_split")
    return {key: value for key, value in given.items() if key not in heads}


def _is_head(row: Row) -> bool:
    return row.ours is not None and row.ours.startswith(_HEAD)


def _backbone(model: Model) -> dict[str, Any]:
    params, stats = model.abstract()
    return {"params": {k: v for k, v in params.items() if k != "head"}, "stats": stats}


def _backbone_arguments(
    state_dict: StateDict, family: Family, given: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of `create_model` that are not the head's."""
    arguments = family.infer_arguments(Shapes(state_dict))
    if family.positions is not None and "image_size" not in given:
        size = _image_size(state_dict, family.positions)
        arguments |= {} if size is None else {"image_size": size}
    return arguments | {key: given[key] for key in arguments if key in given}


def _image_size(state_dict: StateDict, positions: Positions) -> int | None:
    """Side of the images in pixels, if the file tells."""
    lengths = [state_dict[key].shape[axis] for key, axis in positions.tensors if key in state_dict]
    if not lengths or positions.patch_kernel not in state_dict:
        return None
    patches = lengths[0] - (positions.class_token in state_dict)
    side = math.isqrt(max(patches, 0))
    if side * side != patches or not side:
        raise ConversionError(
            f"{patches} positions are no square of patches, so the file does not tell the image"
            " size; give --set image_size=HEIGHT,WIDTH"
        )
    return side * state_dict[positions.patch_kernel].shape[-1]


def _noah_arguments(
    state_dict: StateDict, channels: int, base: str, given: dict[str, Any]
) -> dict[str, Any]:
    """N, r and the number of classes from the shapes of the head.

    The kernels are `[N*K, C_k/N, 1, 1]` and `[N*K, C_v/N, 1, 1]` and the model says C, its
    `channels`, which leaves no choice (with `head_split` and `kv_split`; otherwise N must be
    given).
    """
    architecture = get_architecture(base)
    query_key = _head_key(get_family(base), _QUERY)
    value_key = query_key.replace("query", "value")
    query, value = (np.shape(state_dict.get(key)) for key in (query_key, value_key))
    if len(query) != 4 or len(value) != 4 or not query[1] or not value[1]:
        raise ConversionError(
            f"{query_key} and {value_key} have shapes {query} and {value},"
            " [N*K, channels/N, 1, 1] expected"
        )
    if given.get("head_split", True) and given.get("kv_split", True):
        head_num = given.get("head_num", fractions.Fraction(channels, query[1] + value[1]))
        query_channels = head_num * query[1]
    elif "head_num" not in given:
        raise ConversionError(
            "without head_split or kv_split the shapes do not tell N; give --set head_num=N"
        )
    else:
        head_num = given["head_num"]
        query_channels = query[1] * (head_num if given.get("head_split", True) else 1)
    if head_num < 1 or query[0] % head_num or int(head_num) != head_num:
        # A head of another backbone, or with other switches: the published one says how it differs.
        return {}
    arguments = {"head_num": int(head_num), "num_classes": query[0] // int(head_num)}
    if given.get("kv_split", True):
        arguments["key_ratio"] = (
            architecture.key_ratio
            if int(channels * architecture.key_ratio) == query_channels
            else ratio(channels, int(query_channels))
        )
    return arguments


def _channels(model: Model) -> int:
    """What a model's linear head, or NOAH head by the published switches, takes."""
    head = model.abstract()[0]["head"]
    if "linear" in head:
        return head["linear"]["kernel"].shape[0]
    return sum(math.prod(head[part]["kernel"].shape[:2]) for part in ("query", "value"))


def _choose(
    model: Model,
    state_dict: dict[str, np.ndarray],
    base: str,
    kind: str,
    hint: str | None,
    given: dict[str, Any],
    sizes: dict[str, Any],
) -> Found:
    """Among architectures with the same weights the one the file means.

    `sizes` are the dimensions that nobody published; then there is only `base`.
    """
    family = get_family(base)
    twins = [base] if sizes else [name for name in architectures() if _same(name) == _same(base)]
    hinted = _bare(hint)

    def preference(name: str) -> tuple[bool, bool, bool, int]:
        architecture = get_architecture(name)
        return (
            name != hinted,
            architecture.num_classes != model.num_classes,
            # Where the size is not in the file, the model has its architecture's own.
            architecture.image_size != model.image_size and family.positions is not None,
            twins.index(name),
        )

    best = min(twins, key=preference)
    notes = []
    if sizes:
        notes.append(f"no registered model has these dimensions: {_with(model, sizes)}")
    if attention_heads(base, sizes) and "num_heads" not in given:
        heads = model.arguments["num_heads"]
        notes.append(
            f"the file does not tell the attention heads: taken as {heads}"
            " (--set num_heads=... changes it)"
        )
    if best != base:
        model = _create(state_dict, best, kind, given)[0]
    others = [_name(name, kind) for name in twins if name != best]
    if others and best != hinted:
        notes.append(
            f"{', '.join(others)} would fit as well: the same weights under another name"
            " (--model NAME chooses)"
        )
    if hint and best != hinted:
        near = difflib.get_close_matches(hint, list_models(), n=1, cutoff=0.9)
        known = "" if near and near[0] == hint else ", which is no registered name"
        shapes = "nearest to" if sizes else "those of"
        notes.append(f"it is called {hint!r}{known}, but its shapes are {shapes} {best}")
    if family.positions is None and "image_size" not in given:
        notes.append(
            f"the file does not tell the image size: taken as {model.image_size[0]} x"
            f" {model.image_size[1]} (--set image_size=N changes it)"
        )
    return Found(model, state_dict, tuple(notes))


def _bare(hint: str | None) -> str:
    """A model's name without timm's tag of the weights and the prefix of the head."""
    return (hint or "").split(".")[0].removeprefix(NOAH_PREFIX)


def _with(model: Model, sizes: dict[str, Any]) -> str:
    """A model's name with the dimensions that are not the registered ones."""
    changed = [f"{key}={model.arguments[key]}" for key in sizes]
    return model.name + (f" with {', '.join(changed)}" if changed else "")


def told_name(facts: Mapping[str, Any]) -> str | None:
    """What a checkpoint's own facts call the model."""
    args = facts.get("args")
    told = (facts.get("arch"), args.get("model") if isinstance(args, Mapping) else None)
    return next((name for name in told if isinstance(name, str)), None)
