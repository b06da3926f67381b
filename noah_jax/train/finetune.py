"""Starting from other weights: what of them fits this model, and how.

The backbone must be the same. The head is taken over where it is the same too, and is fresh
otherwise; position embeddings are resized to another image size as DeiT's fine-tuning does it.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from noah_jax.errors import CheckpointError, InputError
from noah_jax.inference.loading import load_with_step
from noah_jax.models import create_model
from noah_jax.models.base import Model
from noah_jax.train.step import State

# What may differ between two models with the same backbone, by argument of `create_model`.
_OF_THE_HEAD = ("head", "num_classes", "head_num", "key_ratio", "head_split", "kv_split")
_OF_THE_HEAD += ("features_only",)
_FREE = {*_OF_THE_HEAD, "image_size", "head_drop_rate", "drop_rate", "drop_path_rate"}
_FREE |= {"batch_norm_group", "remat", "dtype"}
_BICUBIC_A = -0.75  # PyTorch's; jax.image.resize has -0.5
_MAX_LISTED = 2


@dataclasses.dataclass(frozen=True)
class Initial:
    """Weights to start with.

    Attributes:
      params: float32 arrays on this host, by path; what is not among them stays fresh.
      stats: likewise.
      lines: what was taken from where, resized and left fresh.
    """

    params: Mapping[str, np.ndarray]
    stats: Mapping[str, np.ndarray]
    lines: tuple[str, ...]


def load_initial(path: str, model: Model, *, ema: bool = False) -> Initial:
    """The weights of a folder or file as far as `model` can start with them.

    Args:
      path: what `noah_jax.load_model` takes.
      model: the model to start; nothing is computed with it.
      ema: take the moving average of the weights.

    Raises:
      ValueError: in one line, if there are no such weights or their backbone is another.
    """
    try:
        step, theirs, *trees = load_with_step(path, ema=ema)
    except (FileNotFoundError, ValueError, CheckpointError) as error:
        raise InputError(f"init_from={path}: {error}") from error
    except Exception as error:  # of the scheme's library, which may be missing
        raise InputError(f"init_from={path} cannot be read: {error!r}") from error
    params, stats = ({k: np.asarray(v) for k, v in _flat(tree).items()} for tree in trees)
    _check_backbone(path, theirs, model)

    what = ("the moving average of " if ema else "") + theirs.name
    origin = f"{path} after step {step}" if step else path
    lines = [f"starting from {what}, {theirs.num_params:,} parameters, in {origin}"]
    ours = _flat(model.abstract()[0])
    fresh, resized = set(), {}
    if (there := _head(theirs)) != (here := _head(model)):
        lines.append(f"the head is fresh: {there} there, {here} here")
        fresh = {key for key in ours if _in_head(key)}
    # Some parts of a backbone are there for one kind of head alone, such as a class token.
    added = sorted(key for key in ours.keys() - params.keys() if not _in_head(key))
    dropped = sorted(key for key in params.keys() - ours.keys() if not _in_head(key))
    if added:
        lines.append(f"fresh besides, for this head: {', '.join(added)}")
    if dropped:
        lines.append(f"left out, of the head there: {', '.join(dropped)}")
    for key, grid in model.position_grids.items():
        old = theirs.position_grids[key]
        resized[key] = _fit_positions(params[key], old, grid, ours[key].shape[1])
        if old != grid:
            lines.append(f"{key} resized bicubically from {_size(old)} to {_size(grid)} positions")
    taken = {
        key: resized.get(key, params[key]) for key in ours if key in params and key not in fresh
    }
    if bound := [key for key in taken if taken[key].shape != ours[key].shape]:
        raise InputError(
            f"init_from={path}: {bound[0]} and {len(bound) - 1} more weights of {theirs.name} mix"
            f" the tokens of images of {_size(theirs.image_size)} pixels and cannot be resized:"
            f" set model.image_size, here {_size(model.image_size)}, to that"
        )
    return Initial(taken, stats, tuple(lines))


def take_over(state: State, initial: Initial) -> State:
    """A fresh state with other weights, placed as its own were; the average starts at them."""
    weights = {"params": initial.params, "stats": initial.stats}
    new = {key: _replace(state[key], arrays) for key, arrays in weights.items()}
    if "ema" in state:
        new["ema"] = {key: _replace(state["ema"][key], weights[key]) for key in state["ema"]}
    return state | new


def resize_bicubic(x: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """Position embeddings `[1, rows * columns, channels]` of another grid of rows and columns.

    PyTorch's `interpolate(mode="bicubic", align_corners=False)`, which never antialiases.
    """
    rows, columns = (_bicubic_weights(*sizes) for sizes in zip(old, new, strict=True))
    x = np.asarray(x, np.float64).reshape(*old, -1)
    x = np.einsum("ai,bj,ijc->abc", rows, columns, x, optimize=True)
    return x.reshape(1, new[0] * new[1], -1).astype(np.float32)


def _bicubic_weights(old: int, new: int) -> np.ndarray:
    """What each old position along an axis gives to each new one, `[new, old]`."""
    position = (np.arange(new) + 0.5) * old / new - 0.5
    low = np.floor(position).astype(int)
    weights = np.zeros((new, old))
    a = _BICUBIC_A
    for offset in (-1, 0, 1, 2):
        x = np.abs(position - (low + offset))
        inner = (a + 2) * x**3 - (a + 3) * x**2 + 1
        outer = a * (x**3 - 5 * x**2 + 8 * x - 4)
        # Beyond the border the last position stands in.
        nearest = (low + offset).clip(0, old - 1)
        np.add.at(weights, (np.arange(new), nearest), np.where(x <= 1, inner, outer))
    return weights


def _fit_positions(
    x: np.ndarray, old: tuple[int, int], new: tuple[int, int], tokens: int
) -> np.ndarray:
    """Position embeddings for `tokens` tokens, of which those over the new grid are class tokens.

    A class token that was not there starts at 0: a fresh one has a random value of its own.
    """
    there = x.shape[1] - old[0] * old[1]
    here = tokens - new[0] * new[1]
    token, grid = x[:, :there], x[:, there:]
    if here != there:
        token = np.zeros((1, here, x.shape[2]), x.dtype)
    if old != new:
        grid = resize_bicubic(grid, old, new)
    return np.concatenate([token, grid], axis=1)


def _check_backbone(path: str, theirs: Model, ours: Model) -> None:
    """Refuses weights that do not fit our backbone, were it with their head and image size."""
    there, here = theirs.arguments, ours.arguments
    borrowed = {key: there[key] for key in (*_OF_THE_HEAD, "image_size")}
    reasons = [
        f"{key} is {there[key]!r} there and {here[key]!r} here"
        for key in sorted(there.keys() & here.keys() - _FREE)
        if there[key] != here[key]
    ]
    try:
        twin = create_model(ours.name, **{**here, **borrowed})
    except ValueError as error:
        raise InputError(
            f"init_from={path}: {theirs.name} does not fit {ours.name}: {error}"
        ) from error
    found, expected = (
        {key: leaf.shape for tree in m.abstract() for key, leaf in _flat(tree).items()}
        for m in (theirs, twin)
    )
    # Attention heads are the one size that no shape shows.
    if found == expected and there.get("num_heads") == here.get("num_heads"):
        return
    misshapen = [k for k in expected if k in found and found[k] != expected[k]]
    for what, keys in (
        ("missing there", expected.keys() - found.keys()),
        ("unknown here", found.keys() - expected.keys()),
        ("of another shape", [f"{k} {found[k]} for {expected[k]}" for k in misshapen]),
    ):
        if keys:
            reasons.append(f"{len(keys)} {what}, such as {_listed(keys)}")
    raise InputError(
        f"init_from={path}: {theirs.name} there does not fit {ours.name} here: {'; '.join(reasons)}"
    )


def _head(model: Model) -> str:
    """All that a head's weights depend on, but its input, in words."""
    arguments = model.arguments
    if arguments["features_only"]:
        return "none"
    kind = arguments["head"]
    if kind == "noah":
        kind = f"NOAH with N={arguments['head_num']}, r={arguments['key_ratio']:g}"
        kind += "".join(
            f", {key}=False" for key in ("head_split", "kv_split") if not arguments[key]
        )
    return f"{kind} of {model.num_classes} classes"


def _in_head(path: str) -> bool:
    return path.startswith("head/")


def _replace(tree: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    placed = {
        key: jax.make_array_from_callback(
            leaf.shape, leaf.sharding, lambda index, array=arrays[key]: array[index]
        )
        if key in arrays
        else leaf
        for key, leaf in _flat(tree).items()
    }
    return unflatten_dict(placed, sep="/")


def _flat(tree: Any) -> dict[str, Any]:
    return flatten_dict(tree, sep="/")


def _listed(keys: Collection[str]) -> str:
    return ", ".join(sorted(keys)[:_MAX_LISTED])


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
