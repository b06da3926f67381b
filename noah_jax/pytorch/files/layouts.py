"""Where the training programs keep the weights in their files, and what else they say."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from noah_jax.errors import ReadError
from noah_jax.pytorch.files.placeholders import Global, Opaque, plain
from noah_jax.pytorch.files.safetensors_file import is_safetensors, read_safetensors
from noah_jax.pytorch.files.tensors import Tensor, describe
from noah_jax.pytorch.files.torch_file import read_checkpoint

_RAW = ("state_dict", "model", "model_state_dict")
_EMA = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
# What wrappers of a model (DataParallel, torch.compile, FSDP, checkpointing) put into keys,
# in front or, where a part of the model is wrapped, inside.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# What classes that hold a model put in front.
_HOLDERS = ("model", *_EMA)
_MAX_NESTED = 8
_MAX_LISTED = 5


@dataclasses.dataclass(frozen=True)
class Weights:
    """A state dict and what the file says of it.

    Attributes:
      state_dict: read-only arrays by PyTorch key without prefixes; mapped from the file.
      weights: whether these are the trained ones or their exponential moving average.
      has_ema: whether the file has the moving average.
      layout: whose file it is: `cnn`, `deit`, `pvt` or `timm` training, `wrapped` (a state
        dict under some key), `bare` (the state dict itself) or `safetensors`.
      facts: what else is told in a few words, as JSON could hold it: `epoch`, `acc`,
        `best_acc`, `metric`, `arch`, `args` (by name), of safetensors `metadata`.
    """

    state_dict: dict[str, np.ndarray]
    weights: Literal["raw", "ema"]
    has_ema: bool
    layout: str
    facts: dict[str, Any]


def load_weights(path: str | os.PathLike, *, ema: bool = False) -> Weights:
    """The weights in a training checkpoint, a bare state dict or a safetensors file.

    Nothing that the file names is imported or called.

    Args:
      path: a local file of `torch.save` (PyTorch 1.6 or newer) or safetensors.
      ema: take the moving average, not the weights themselves.

    Raises:
      ReadError: one line that names the file and what was wrong: it cannot be read, holds no
        state dict or not the one asked for, keys that become one without their prefixes, or
        something in the state dict that is no array.
    """
    safetensors = is_safetensors(path)
    tree, metadata = read_safetensors(path) if safetensors else (read_checkpoint(path), {})
    if type(tree) is not dict:
        raise ReadError(f"{path}: holds {describe(tree)}, a dict expected; save model.state_dict()")
    raw, average, bare = _find(tree)
    if raw is None and average is None:
        raise ReadError(f"{path}: no state dict in it; {_contents(tree)}")
    if ema and average is None:
        raise ReadError(f"{path}: no EMA weights in it, only raw ones; {_contents(tree)}")
    if not ema and raw is None:
        raise ReadError(f"{path}: only EMA weights in it, ask for them; {_contents(tree)}")
    if safetensors:
        layout, facts = "safetensors", {"metadata": plain(metadata)} if metadata else {}
    elif bare:
        layout, facts = "bare", {}
    else:
        layout, facts = _layout(tree), _facts(tree)
    return Weights(
        state_dict=_arrays(path, average if ema else raw),
        weights="ema" if ema else "raw",
        has_ema=average is not None,
        layout=layout,
        facts=facts,
    )


def _find(tree: dict) -> tuple[dict | None, dict | None, bool]:
    """The raw and the averaged state dict, and whether they are the tree itself."""
    raw = next(filter(None, (_unwrap(tree.get(key), _RAW) for key in _RAW)), None)
    average = next(filter(None, (_unwrap(tree.get(key), _EMA + _RAW) for key in _EMA)), None)
    bare = raw is None and average is None
    if bare:
        raw = _unwrap(tree, _RAW)
        bare = raw is tree
    if raw is not None and average is None:
        raw, average = _split(raw)
    return raw, average, bare


def _split(values: dict) -> tuple[dict | None, dict | None]:
    """Raw and averaged weights that lie in one dict, told apart by the first name in the key."""
    averaged = {key for key in values if type(key) is str and _first_name(key) in _EMA}
    if not averaged:
        return values, None
    raw = {key: value for key, value in values.items() if key not in averaged}
    average = {key: value for key, value in values.items() if key in averaged}
    return (raw if _has_weights(raw) else None), average


def _unwrap(value: Any, holders: tuple[str, ...] = ()) -> dict | None:
    """The innermost dict with tensors, in dicts under the names of holders and wrappers."""
    found = None
    for _ in range(_MAX_NESTED):
        if type(value) is not dict:
            break
        if _has_weights(value):
            found = value
        names = (*holders, *_WRAPPERS)
        value = next((value[name] for name in names if type(value.get(name)) is dict), None)
    return found


def _has_weights(values: Mapping) -> bool:
    return any(_is_tensor(value) and not _is_counter(key) for key, value in values.items())


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _is_counter(key: Any) -> bool:
    """`n_averaged` of PyTorch's AveragedModel: how often, not what."""
    return type(key) is str and key.rpartition(".")[2] == "n_averaged"


def _first_name(key: str) -> str:
    return next((name for name in key.split(".") if name not in _WRAPPERS), "")


def _strip(key: str) -> str:
    names = [name for name in key.split(".") if name not in _WRAPPERS]
    first = next((i for i, name in enumerate(names) if name not in _HOLDERS), len(names))
    return ".".join(names[first:])


def _arrays(path: str | os.PathLike, values: dict) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    sources: dict[str, str] = {}
    problems = []
    for key, value in values.items():
        if type(key) is not str or not (name := _strip(key)):
            problems.append(f"key {_shown(key)} is no parameter's name")
        elif _is_counter(key):
            continue
        elif not _is_tensor(value):
            problems.append(f"{_shown(key)} is {describe(value)}, a dense real tensor expected")
        elif name in arrays:
            problems.append(f"{_shown(sources[name])} and {_shown(key)} both name {_shown(name)}")
        else:
            sources[name] = key
            arrays[name] = value.numpy() if type(value) is Tensor else value
    if problems:
        more = f"; and {len(problems) - _MAX_LISTED} more" if len(problems) > _MAX_LISTED else ""
        listed = "; ".join(problems[:_MAX_LISTED])
        raise ReadError(f"{path}: {len(problems)} problem(s) in the state dict: {listed}{more}")
    return arrays


def _layout(tree: dict) -> str:
    keys = tree.keys()
    if "state_dict" in keys and keys & {"acc", "best_acc"}:
        return "cnn"
    if "state_dict" in keys and keys & {"arch", "args", "metric", "state_dict_ema"}:
        return "timm"
    if "model" in keys and "model_ema" in keys:
        return "deit"
    if "model" in keys and keys & {"lr_scheduler", "optimizer", "args"}:
        return "pvt"
    return "wrapped"


def _facts(tree: dict) -> dict[str, Any]:
    return plain(
        {
            key: value
            for key, value in tree.items()
            if type(value) in (int, float, bool, str)
            or (type(value) is Tensor and value.shape in ((), (1,)))
            or (key == "args" and type(value) in (dict, Opaque))
        }
    )


def _contents(tree: dict) -> str:
    shown = [f"{_shown(key)} ({_kind(value)})" for key, value in list(tree.items())[:20]]
    more = f" and {len(tree) - 20} more" if len(tree) > 20 else ""
    return f"it has {', '.join(shown)}{more}" if shown else "it is empty"


def _kind(value: Any) -> str:
    if type(value) in (Opaque, Global):
        return describe(value)
    return type(value).__name__.lower()


def _shown(key: Any) -> str:
    """A key for a message, on one line however long it is."""
    return repr(key[:80] if type(key) is str else plain(key))
