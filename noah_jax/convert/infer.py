"""Which registered model a state dict belongs to, from its keys and shapes."""

import dataclasses
import difflib
import fractions
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from noah_jax.convert.names import TABLES
from noah_jax.convert.renames import rename
from noah_jax.convert.table import ConversionError, Row, expected_shapes, match
from noah_jax.models import ARCHITECTURES, create_model, get_architecture, list_models
from noah_jax.models.base import Model

StateDict = Mapping[str, np.ndarray]

_PREFIX = "noah_"
_LINEAR, _QUERY = "params/head/linear/kernel", "params/head/query/kernel"
_HEAD = "params/head/"
# Of the file's keys, the share that a family's table must know for the file to be its.
_KNOWN = 0.5

# family -> tensor and dimension with the number of positions, patch tensor. The patch tensor's
# last dimension is the patch's side in pixels.
_POSITIONS = {
    "deit": ([("pos_embed", 1)], "patch_embed.proj.weight"),
    "pvt": ([("pos_embed1", 1)], "patch_embed1.proj.weight"),
    "mlp": (
        [
            ("blocks.0.linear_tokens.weight", 1),
            ("blocks.0.mlp_tokens.fc1.weight", 1),
            ("blocks.0.mlp_channels.gate.proj.weight", 1),
        ],
        "stem.proj.weight",
    ),
}
_STAGES = (1, 2, 3, 4)


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
      hint: what the file calls the model; decides between models of one architecture.
      arguments: of `create_model`; they override what the shapes tell.

    Raises:
      ConversionError: if no registered model fits, in one line that names the nearest.
      ValueError: if `name` or an argument is none.
    """
    given = dict(arguments or {})
    if name is not None:
        family = get_architecture(name).family
        renamed = rename(state_dict, family)
        kind = _head_kind(renamed, family)
        if kind is not None and name != (right := _name(name.removeprefix(_PREFIX), kind)):
            raise ConversionError(
                f"the file has a {kind} head, which {name} has not; --model {right} has it"
            )
        model = _create(renamed, name.removeprefix(_PREFIX), kind or "linear", given)[0]
        return Found(model, renamed, ())

    misfits = []
    for family in _families(state_dict):
        renamed = rename(state_dict, family)
        kind = _head_kind(renamed, family)
        if kind is None:
            raise ConversionError(
                f"no head in the state dict, though its other keys are those of {family} models:"
                f" {_head_key(family, _LINEAR)} or {_head_key(family, _QUERY)} expected"
            )
        for base in _by_likeness(renamed, family):
            model, problems = _create(renamed, base, kind, given)
            if not problems:
                return _choose(model, renamed, base, kind, hint, given)
            misfits.append((len(problems), model.name, problems[0]))
    if not misfits:
        keys = ", ".join(list(state_dict)[:3])
        raise ConversionError(
            f"the keys ({keys}, ...; {len(state_dict)} in all) are those of no registered family"
            f" ({', '.join(TABLES)}); a model of another kind cannot be converted"
        )
    near = [f"{model} ({problem}; {n} problem(s))" for n, model, problem in sorted(misfits)[:3]]
    raise ConversionError(
        f"no registered model fits the shapes; nearest: {'; '.join(near)};"
        " --model NAME lists every problem with one"
    )


def _families(state_dict: StateDict) -> list[str]:
    """The families whose tables know most of the keys."""
    known = {}
    for family, table in TABLES.items():
        keys = rename(state_dict, family)
        known[family] = sum(any(match(row.torch, key) is not None for row in table) for key in keys)
    best = max(known.values(), default=0)
    if best < _KNOWN * len(state_dict):
        return []
    return [family for family, count in known.items() if count == best]


def _by_likeness(state_dict: StateDict, family: str) -> list[str]:
    """Names of a family's architectures, one of those that are the same, likeliest first."""
    told = _dimensions(state_dict, family)
    names: dict[str, str] = {}
    for name, architecture in ARCHITECTURES.items():
        if architecture.family == family:
            names.setdefault(_same(name), name)

    def likeness(name: str) -> int:
        bound = ARCHITECTURES[name].build.keywords
        return sum(bound.get(key) == value for key, value in told.items())

    found = sorted(names.values(), key=likeness, reverse=True)
    # Building a model takes a second: only those as like as the likeliest, or the three next.
    best = likeness(found[0])
    alike = [name for name in found if likeness(name) == best]
    return alike if len(alike) >= 3 else found[:3]


def _dimensions(state_dict: StateDict, family: str) -> dict[str, Any]:
    """What a family's classes are built with, as far as single shapes tell: only an order."""

    def side(key: str, axis: int = 0) -> int:
        shape = np.shape(state_dict.get(key, np.empty(0)))
        return shape[axis] if -len(shape) <= axis < len(shape) else 0

    def depth(prefix: str) -> int:
        inside = [key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)]
        return len({key.split(".")[0] for key in inside})

    match family:
        case "resnet":
            return {"depths": tuple(depth(f"layer{s}.") for s in _STAGES)}
        case "mobilenetv2":
            return {"width_mult": side("features.17.conv.2.weight") / 320}
        case "shufflenetv2":
            parts = [side(f"stage{s}.0.branch2.5.weight") for s in (2, 3, 4)]
            return {"widths": (*(2 * part for part in parts), side("conv5.0.weight"))}
        case "pvt":
            return {
                "widths": tuple(side(f"patch_embed{s}.proj.weight") for s in _STAGES),
                "depths": tuple(depth(f"block{s}.") for s in _STAGES),
            }
        case "deit" | "mlp":
            patch = _POSITIONS[family][1]
            return {
                "width": side(patch), "patch_size": side(patch, -1), "depth": depth("blocks."),
            }  # fmt: skip
    return {}


def _same(name: str) -> str:
    """Equal for architectures that have the same weights."""
    build = ARCHITECTURES[name].build
    # A layer scale is only where training starts from.
    keywords = {key: _without_start(value) for key, value in build.keywords.items()}
    return repr((build.func, sorted(keywords.items())))


def _without_start(value: Any) -> str:
    if hasattr(value, "keywords"):
        kept = {k: v for k, v in value.keywords.items() if k != "layer_scale"}
        return repr((value.func, sorted(kept.items())))
    return repr(value)


def _name(base: str, kind: str) -> str:
    return _PREFIX + base if kind == "noah" else base


def _head_key(family: str, path: str) -> str:
    """The PyTorch key of a part of the head."""
    return next(row.torch for row in TABLES[family] if row.ours == path)


def _head_kind(state_dict: StateDict, family: str) -> str | None:
    if _head_key(family, _QUERY) in state_dict:
        return "noah"
    return "linear" if _head_key(family, _LINEAR) in state_dict else None


def _create(
    state_dict: StateDict, base: str, kind: str, given: dict[str, Any]
) -> tuple[Model, list[str]]:
    """An architecture with the file's head, and where the rest of the file differs from it."""
    architecture = get_architecture(base)
    family = architecture.family
    arguments = _backbone_arguments(state_dict, family, given)
    if kind == "linear":
        weight = state_dict.get(_head_key(family, _LINEAR))
        if weight is not None and weight.ndim == 2:
            arguments["num_classes"] = weight.shape[0]
    else:
        published, fits = _published_head(state_dict, base, {**arguments, **_backbone_only(given)})
        if fits and _backbone_only(given) == given:
            return published, _differences(state_dict, published, family)
        arguments |= _noah_arguments(state_dict, published, architecture, given)
    model = create_model(_name(base, kind), **{**arguments, **given})
    return model, _differences(state_dict, model, family)


def _published_head(
    state_dict: StateDict, base: str, arguments: dict[str, Any]
) -> tuple[Model, bool]:
    """An architecture with its published N and r, and whether the file's head is that."""
    family, head_num = get_architecture(base).family, get_architecture(base).head_num
    rows = np.shape(state_dict[_head_key(family, _QUERY)])[:1] or (0,)
    num_classes = max(rows[0] // head_num, 1)
    model = create_model(_PREFIX + base, **{**arguments, "num_classes": num_classes})
    head = expected_shapes({"params": {"head": model.abstract()[0]["head"]}}, TABLES[family])
    return model, all(np.shape(state_dict.get(key)) == shape for key, shape in head.items())


def _differences(state_dict: StateDict, model: Model, family: str) -> list[str]:
    """Where the file differs from a model, their heads apart."""
    table = TABLES[family]
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
    state_dict: StateDict, family: str, given: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of `create_model` that are not the head's."""
    arguments: dict[str, Any] = {}
    if family == "deit":
        arguments["pre_logits"] = "pre_logits.fc.weight" in state_dict
    if family == "resnet" and np.ndim(kernel := state_dict.get("conv1.weight")) == 4:
        arguments["width"] = kernel.shape[0]
        arguments["stem"] = "small" if kernel.shape[-1] == 3 else "imagenet"
    if family in _POSITIONS and "image_size" not in given:
        size = _image_size(state_dict, family)
        arguments |= {} if size is None else {"image_size": size}
    return arguments | {key: given[key] for key in arguments if key in given}


def _image_size(state_dict: StateDict, family: str) -> int | None:
    """Side of the images in pixels, if the file tells."""
    tensors, patch = _POSITIONS[family]
    found = [state_dict[key].shape[axis] for key, axis in tensors if key in state_dict]
    if not found or patch not in state_dict:
        return None
    positions = found[0] - (family == "deit" and "cls_token" in state_dict)
    side = math.isqrt(max(positions, 0))
    if side * side != positions or not side:
        raise ConversionError(
            f"{positions} positions are no square of patches, so the file does not tell the image"
            " size; give --set image_size=HEIGHT,WIDTH"
        )
    return side * state_dict[patch].shape[-1]


def _noah_arguments(
    state_dict: StateDict, published: Model, architecture: Any, given: dict[str, Any]
) -> dict[str, Any]:
    """N, r and the number of classes from the shapes of the head.

    The kernels are `[N*K, C_k/N, 1, 1]` and `[N*K, C_v/N, 1, 1]` and the model says C, which
    leaves no choice (with `head_split` and `kv_split`; otherwise N must be given).
    """
    head = published.abstract()[0]["head"]
    channels = sum(
        head[part]["kernel"].shape[0] * head[part]["kernel"].shape[1] for part in ("query", "value")
    )
    query_key = _head_key(architecture.family, _QUERY)
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
        arguments["key_ratio"] = _key_ratio(channels, int(query_channels), architecture.key_ratio)
    return arguments


def _key_ratio(channels: int, query_channels: int, published: float) -> float:
    """The share that gives so many query channels, the published one where that does."""
    if int(channels * published) == query_channels:
        return published
    ratio = query_channels / channels
    # The model rounds the product down.
    return ratio if int(channels * ratio) == query_channels else math.nextafter(ratio, 1)


def _choose(
    model: Model,
    state_dict: dict[str, np.ndarray],
    base: str,
    kind: str,
    hint: str | None,
    given: dict[str, Any],
) -> Found:
    """Among architectures with the same weights the one the file means."""
    twins = [name for name in ARCHITECTURES if _same(name) == _same(base)]
    hinted = (hint or "").split(".")[0].removeprefix(_PREFIX)

    def preference(name: str) -> tuple[bool, bool, bool, int]:
        architecture = ARCHITECTURES[name]
        return (
            name != hinted,
            architecture.num_classes != model.num_classes,
            # Where the size is not in the file, the model has its architecture's own.
            architecture.image_size != model.image_size and architecture.family in _POSITIONS,
            twins.index(name),
        )

    best = min(twins, key=preference)
    notes = []
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
        notes.append(f"the file calls the model {hint!r}{known}; its shapes are {model.name}'s")
    if ARCHITECTURES[best].family not in _POSITIONS and "image_size" not in given:
        notes.append(
            f"the file does not tell the image size: taken as {model.image_size[0]} x"
            f" {model.image_size[1]} (--set image_size=N changes it)"
        )
    return Found(model, state_dict, tuple(notes))


def told_name(facts: Mapping[str, Any]) -> str | None:
    """What a checkpoint's own facts call the model."""
    args = facts.get("args")
    told = (facts.get("arch"), args.get("model") if isinstance(args, Mapping) else None)
    return next((name for name in told if isinstance(name, str)), None)
