"""Takes over weights from another model, as far as this one can start with them.

The backbone must be the same. The head is taken over if it is the same too, and is fresh
otherwise. Position embeddings are resized to another image size as the backbone's authors do it.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from noah_jax.data.preprocessing import Preprocessing
from noah_jax.errors import InputError, NoahError
from noah_jax.heads.registry import unpublished_options
from noah_jax.inference.loading import load_with_step
from noah_jax.models import create_model, get_family
from noah_jax.models.base import Model, Tree
from noah_jax.models.positions import fit_positions
from noah_jax.runs.data_file import describe_classes

# Arguments of `create_model` that may differ between two models with the same backbone.
HEAD_ONLY = (
    *("head", "num_classes", "head_num", "key_ratio", "head_split", "kv_split"),
    *("head_options", "features_only"),
)
_FREE_ARGUMENTS = {*HEAD_ONLY, "image_size", "head_drop_rate", "drop_rate", "drop_path_rate"}
_FREE_ARGUMENTS |= {"batch_norm_group", "remat", "dtype"}
_MAX_LISTED = 2


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """Weights to start with.

    Attributes:
      params: float32 arrays on this host, by path. A parameter that is missing stays fresh.
      stats: The running statistics, likewise.
      lines: What was taken from where, what was resized, and what stays fresh.
      source: The model of the weights, with their preprocessing and class names.
      head: Whether the head is taken over.
    """

    params: Mapping[str, np.ndarray]
    stats: Mapping[str, np.ndarray]
    lines: tuple[str, ...]
    source: Model
    head: bool


def load_initial_weights(
    path: str,
    model: Model,
    *,
    ema: bool = False,
    class_names: Sequence[str] | None = None,
    keep_head: bool = False,
    preprocessing: Preprocessing | None = None,
    where: str | None = None,
) -> InitialWeights:
    """Loads the weights of a folder or file that `model` can start with.

    Args:
      path: What `noah_jax.load_model` takes.
      model: The model to start; nothing is computed with it.
      ema: Take the moving average of the weights.
      class_names: The classes of the model, in the order of their indices. If the weights' own are
        others, their head is not taken.
      keep_head: Take it all the same, if there are as many classes.
      preprocessing: What is done to the model's images, to say where the weights expect another
        mean or standard deviation.
      where: What errors name; `None` is `init_from=` and the path.

    Raises:
      InputError: If there are no such weights, or their backbone is another one.
    """
    where = f"init_from={path}" if where is None else where
    try:
        loaded = load_with_step(path, ema=ema)
    except (NoahError, FileNotFoundError, ValueError) as error:
        said = str(error)
        raise InputError(said if said.startswith(where) else f"{where}: {said}") from error
    except Exception as error:  # The library behind gs:// may be missing, or raise its own errors.
        raise InputError(f"{where} cannot be read: {error!r}") from error
    name = ("the moving average of " if ema else "") + loaded.model.name
    origin = f"{path} after step {loaded.step}" if loaded.step else path
    lines = [f"starting from {name}, {loaded.model.num_params:,} parameters, in {origin}"]
    if preprocessing is not None:
        lines += _compare_normalisation(loaded.model, preprocessing)
    initial = fit_weights(
        loaded.model,
        loaded.params,
        loaded.stats,
        model,
        class_names=class_names,
        keep_head=keep_head,
        where=where,
    )
    return dataclasses.replace(initial, lines=(*lines, *initial.lines))


def fit_weights(
    source: Model,
    source_params: Tree,
    source_stats: Tree,
    model: Model,
    *,
    class_names: Sequence[str] | None = None,
    keep_head: bool = False,
    where: str,
) -> InitialWeights:
    """Takes over the weights of a model as far as another can start with them.

    Args:
      source: The model of the weights.
      source_params: Its parameters.
      source_stats: Its statistics.
      model: The model to start; nothing is computed with it.
      class_names: See `load_initial_weights`.
      keep_head: See `load_initial_weights`.
      where: What errors name.

    Raises:
      InputError: If the backbones differ.
    """
    params, stats = (
        {k: np.asarray(v) for k, v in _flat(tree).items()} for tree in (source_params, source_stats)
    )
    _check_backbone(where, source, model)
    lines: list[str] = []
    wanted = _flat(model.abstract()[0])
    fresh: set[str] = set()
    source_head, head = _describe_head(source), _describe_head(model)
    if source_head != head:
        lines.append(f"the head is fresh: {source_head} there, {head} here")
        fresh = {key for key in wanted if _in_head(key)}
    elif head != "none" and class_names is not None:
        line, is_fresh = _compare_classes(source.class_names, class_names, keep_head)
        lines += line
        fresh = {key for key in wanted if is_fresh and _in_head(key)}
    # Some parts of a backbone exist only with one kind of head, such as a class token.
    added = sorted(key for key in wanted.keys() - params.keys() if not _in_head(key))
    dropped = sorted(key for key in params.keys() - wanted.keys() if not _in_head(key))
    if added:
        lines.append(f"fresh as well, because only this head needs them: {', '.join(added)}")
    if dropped:
        lines.append(f"left out, because only the head there needs them: {', '.join(dropped)}")
    resized: dict[str, np.ndarray] = {}
    positions = get_family(model.name).positions
    antialias = positions is not None and positions.antialias
    for key, grid in model.position_grids.items():
        source_grid = source.position_grids[key]
        resized[key] = fit_positions(
            params[key], source_grid, grid, wanted[key].shape[1], antialias=antialias
        )
        if source_grid != grid:
            sizes = f"{_size(source_grid)} to {_size(grid)}"
            how = "bicubically, antialiased," if antialias else "bicubically"
            lines.append(f"{key} resized {how} from {sizes} positions")
    taken = {
        key: resized.get(key, params[key]) for key in wanted if key in params and key not in fresh
    }
    if misshapen := [key for key in taken if taken[key].shape != wanted[key].shape]:
        raise InputError(
            f"{where}: {misshapen[0]} and {len(misshapen) - 1} more weights of"
            f" {source.name} mix the tokens of images of {_size(source.image_size)} pixels and"
            f" cannot be resized: set model.image_size, here {_size(model.image_size)}, to that"
        )
    has_head = head != "none" and not fresh
    return InitialWeights(taken, stats, tuple(lines), source, has_head)


def _check_backbone(where: str, source: Model, model: Model) -> None:
    """Raises unless the weights fit this backbone.

    The backbone is built with the head and the image size of the weights' own model, so that only
    the backbone can differ.
    """
    borrowed = {key: source.arguments[key] for key in (*HEAD_ONLY, "image_size")}
    reasons = [
        f"{key} is {source.arguments[key]!r} there and {model.arguments[key]!r} here"
        for key in sorted(source.arguments.keys() & model.arguments.keys() - _FREE_ARGUMENTS)
        if source.arguments[key] != model.arguments[key]
    ]
    try:
        twin = create_model(model.name, **{**model.arguments, **borrowed})
    except ValueError as error:
        raise InputError(f"{where}: {source.name} does not fit {model.name}: {error}") from error
    actual, expected = (
        {key: leaf.shape for tree in m.abstract() for key, leaf in _flat(tree).items()}
        for m in (source, twin)
    )
    # The number of attention heads is the one size that no shape shows.
    same_heads = source.arguments.get("num_heads") == model.arguments.get("num_heads")
    if actual == expected and same_heads:
        return
    misshapen = [key for key in expected if key in actual and actual[key] != expected[key]]
    for problem, keys in (
        ("missing there", expected.keys() - actual.keys()),
        ("unknown here", actual.keys() - expected.keys()),
        ("of another shape", [f"{k} {actual[k]} for {expected[k]}" for k in misshapen]),
    ):
        if keys:
            reasons.append(f"{len(keys)} {problem}, such as {_listed(keys)}")
    raise InputError(
        f"{where}: {source.name} there does not fit {model.name} here: {'; '.join(reasons)}"
    )


def _compare_classes(
    before: Sequence[str] | None, now: Sequence[str], keep_head: bool
) -> tuple[list[str], bool]:
    """Returns what to say of two heads of as many classes, and whether a fresh one is needed."""
    if before is None:
        return ["the head is taken over: as many classes there, whose names are not known"], False
    if not (difference := describe_classes(before, now)):
        return [], False
    if keep_head:
        words = f"the head is taken over, as data.allow_change=True says, although {difference}"
        return [words], False
    return [
        f"the head is fresh: as many classes there, but {difference}"
        " (--config.data.allow_change=True takes it over)"
    ], True


def _compare_normalisation(source: Model, own: Preprocessing) -> list[str]:
    """Returns what to say if weights expect images that are normalised otherwise."""
    if np.allclose([source.mean, source.std], [own.mean, own.std], rtol=0, atol=1e-4):
        return []
    mean, std = ((",".join(f"{x:g}" for x in values)) for values in (source.mean, source.std))
    return [
        f"those weights expect images of mean {mean} and std {std}, and this run has others;"
        f" --config.data.mean='({mean})' --config.data.std='({std})' takes theirs"
    ]


def _describe_head(model: Model) -> str:
    """Returns all that a head's weights depend on, except for its input, in words."""
    arguments = model.arguments
    if arguments["features_only"]:
        return "none"
    kind = arguments["head"]
    if kind == "noah":
        kind = f"NOAH with N={arguments['head_num']}, r={arguments['key_ratio']:g}"
        kind += "".join(
            f", {key}=False" for key in ("head_split", "kv_split") if not arguments[key]
        )
    if options := unpublished_options(arguments["head"], arguments["head_options"]):
        kind += f", {options}"
    return f"{kind} of {model.num_classes} classes"


def _in_head(path: str) -> bool:
    return path.startswith("head/")


def _flat(tree: Any) -> dict[str, Any]:
    return flatten_dict(tree, sep="/")


def _listed(keys: Collection[str]) -> str:
    return ", ".join(sorted(keys)[:_MAX_LISTED])


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
