"""Finds the weights in the files of training programs, and the metadata beside them."""

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
# Names that wrappers of a model (DataParallel, torch.compile, FSDP, checkpointing) put into keys:
# in front of a key, or inside it if only a part of the model is wrapped.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Names that classes which hold a model put in front of keys.
_HOLDERS = ("model", *_EMA)
# Dicts that describe the weights or their training.
_DESCRIPTIONS = ("args", "pretrained_cfg")
_MAX_NESTED = 8
_MAX_LISTED = 5


@dataclasses.dataclass(frozen=True)
class Weights:
    """A state dict and what its file says about it.

    Attributes:
      state_dict: Read-only arrays by PyTorch's keys without wrappers' prefixes, mapped from the
        file.
      weights: "raw" for the trained weights, "ema" for their exponential moving average.
      has_ema: Whether the file has an exponential moving average.
      layout: The kind of file: "cnn", "deit", "pvt", "timm", "lightning" or "deepspeed" for
        checkpoints of these training programs, "wrapped" for a state dict under some key, "bare"
        for a state dict alone, "safetensors".
      metadata: What else the file says, as JSON could hold it: `epoch`, `acc`, `best_acc`,
        `metric`, `arch`, `args` (by name), timm's `pretrained_cfg`; for safetensors, its
        `metadata`.
      prefix: What wrappers put in front of every key of the file, such as "module."; it is left out
        of `state_dict`.
      beside: The keys of `state_dict` that stood outside the module that holds the others, such as
        `criterion.weight` beside `model.conv1.weight`.
    """

    state_dict: dict[str, np.ndarray]
    weights: Literal["raw", "ema"]
    has_ema: bool
    layout: str
    metadata: dict[str, Any]
    prefix: str = ""
    beside: tuple[str, ...] = ()


def load_weights(path: str | os.PathLike, *, ema: bool = False) -> Weights:
    """Loads the weights in a training checkpoint, a bare state dict or a safetensors file.

    Nothing that the file names is imported or called.

    Args:
      path: A local file of `torch.save` or safetensors.
      ema: Load the exponential moving average instead of the raw weights.

    Raises:
      ReadError: In one line that names the file and the problem: the file cannot be read, lacks
        the state dict asked for, has keys that become equal without their prefixes, or has
        something in its state dict that is not an array.
    """
    safetensors = is_safetensors(path)
    tree, header = read_safetensors(path) if safetensors else (read_checkpoint(path), {})
    if type(tree) is not dict:
        raise ReadError(f"{path}: holds {describe(tree)}, expected a dict; save model.state_dict()")
    raw, average, bare = _find(tree)
    if raw is None and average is None:
        raise ReadError(f"{path}: no state dict in it; {_contents(tree)}")
    if ema and average is None:
        raise ReadError(f"{path}: no EMA weights in it, only raw ones; {_contents(tree)}")
    if not ema and raw is None:
        raise ReadError(f"{path}: only EMA weights in it, ask for them; {_contents(tree)}")
    layout: str
    metadata: dict[str, Any] = {}
    if safetensors:
        layout = "safetensors"
        if header:
            metadata = {"metadata": plain(header)}
    elif bare:
        layout = "bare"
    else:
        layout, metadata = _layout(tree), _metadata(tree)
    arrays, prefix, beside = _arrays(path, (average if ema else raw) or {})
    return Weights(
        state_dict=arrays,
        prefix=prefix,
        beside=beside,
        weights="ema" if ema else "raw",
        has_ema=average is not None,
        layout=layout,
        metadata=metadata,
    )


def _find(tree: dict) -> tuple[dict | None, dict | None, bool]:
    """Returns the raw and the averaged state dict, and whether the tree itself is one."""
    raw = next(filter(None, (_unwrap(tree.get(key), _RAW) for key in _RAW)), None)
    average = next(filter(None, (_unwrap(tree.get(key), _EMA + _RAW) for key in _EMA)), None)
    bare = raw is None and average is None
    if bare:
        raw = _unwrap(tree, _RAW)
        bare = raw is tree
        if raw is None:
            raw, average = _search(tree)
    if raw is not None and average is None:
        raw, average = _split(raw)
    return raw, average, bare


def _search(tree: dict) -> tuple[dict | None, dict | None]:
    """Returns the raw and the averaged weights under names of the user's own, such as `net`."""
    found: dict[bool, list[dict]] = {False: [], True: []}
    nested = [(str(key).lower(), value) for key, value in tree.items() if type(value) is dict]
    for _ in range(_MAX_NESTED):
        for name, value in nested:
            if _has_names(value):
                found["ema" in name].append(value)
        if any(found.values()):
            break
        nested = [
            (f"{name}.{str(key).lower()}", inner)
            for name, value in nested
            for key, inner in value.items()
            if type(inner) is dict
        ]
    # Of several models nobody knows which one is meant.
    raw, average = (values[0] if len(values) == 1 else None for values in found.values())
    return raw, average


def _has_names(values: dict) -> bool:
    """Says whether a dict has tensors by the names of layers, as an optimizer's state has not."""
    return any(
        type(key) is str and "." in key and _is_tensor(value) for key, value in values.items()
    )


def _split(values: dict) -> tuple[dict | None, dict | None]:
    """Separates raw from averaged weights in one dict, by the first name in each key."""
    averaged = {key for key in values if type(key) is str and _first_name(key) in _EMA}
    if not averaged:
        return values, None
    raw = {key: value for key, value in values.items() if key not in averaged}
    average = {key: value for key, value in values.items() if key in averaged}
    return (raw if _has_weights(raw) else None), average


def _unwrap(value: Any, holders: tuple[str, ...] = ()) -> dict | None:
    """Returns the innermost dict with tensors, following the names of holders and wrappers."""
    innermost = None
    for _ in range(_MAX_NESTED):
        if type(value) is not dict:
            break
        if _has_weights(value):
            innermost = value
        names = (*holders, *_WRAPPERS)
        value = next((value[name] for name in names if type(value.get(name)) is dict), None)
    return innermost


def _has_weights(values: Mapping) -> bool:
    return any(_is_tensor(value) and not _is_counter(key) for key, value in values.items())


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _is_counter(key: Any) -> bool:
    """Says whether a key is PyTorch's `AveragedModel.n_averaged`, which is not a weight."""
    return type(key) is str and key.rpartition(".")[2] == "n_averaged"


def _first_name(key: str) -> str:
    return next((name for name in key.split(".") if name not in _WRAPPERS), "")


def _strip(key: str) -> str:
    names = [name for name in key.split(".") if name not in _WRAPPERS]
    first = next((i for i, name in enumerate(names) if name not in _HOLDERS), len(names))
    return ".".join(names[first:])


def _arrays(
    path: str | os.PathLike, values: dict
) -> tuple[dict[str, np.ndarray], str, tuple[str, ...]]:
    """Returns the arrays by their keys without wrappers.

    Returns:
      The arrays, what all keys had in front of them, and the keys that had no holder's name there
      if others had one.
    """
    arrays: dict[str, np.ndarray] = {}
    sources: dict[str, str] = {}
    problems = []
    for key, value in values.items():
        if type(key) is not str or not (name := _strip(key)):
            problems.append(f"key {_shown(key)} is not the name of a parameter")
        elif _is_counter(key):
            continue
        elif not _is_tensor(value):
            problems.append(f"{_shown(key)} is {describe(value)}, expected a dense real tensor")
        elif name in arrays:
            problems.append(f"{_shown(sources[name])} and {_shown(key)} both name {_shown(name)}")
        else:
            sources[name] = key
            arrays[name] = value.numpy() if type(value) is Tensor else value
    if problems:
        more = f"; and {len(problems) - _MAX_LISTED} more" if len(problems) > _MAX_LISTED else ""
        listed = "; ".join(problems[:_MAX_LISTED])
        raise ReadError(f"{path}: {len(problems)} problem(s) in the state dict: {listed}{more}")
    prefixes = {key.removesuffix(name) for name, key in sources.items()}
    outside = [name for name, key in sources.items() if _first_name(key) not in _HOLDERS]
    beside = tuple(outside) if len(outside) < len(sources) else ()
    return arrays, prefixes.pop() if len(prefixes) == 1 else "", beside


def _layout(tree: dict) -> str:
    keys = tree.keys()
    if "pytorch-lightning_version" in keys:
        return "lightning"
    if "module" in keys and keys & {"ds_version", "ds_config", "param_shapes"}:
        return "deepspeed"
    if "state_dict" in keys and keys & {"acc", "best_acc"}:
        return "cnn"
    if "state_dict" in keys and keys & {"arch", "args", "metric", "state_dict_ema"}:
        return "timm"
    if "model" in keys and "model_ema" in keys:
        return "deit"
    if "model" in keys and keys & {"lr_scheduler", "optimizer", "args"}:
        return "pvt"
    return "wrapped"


def _metadata(tree: dict) -> dict[str, Any]:
    return plain(
        {
            key: value
            for key, value in tree.items()
            if type(value) in (int, float, bool, str)
            or (type(value) is Tensor and value.shape in ((), (1,)))
            or (key in _DESCRIPTIONS and type(value) in (dict, Opaque))
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
    """Returns a key for a message, shortened to fit on one line."""
    return repr(key[:80] if type(key) is str else plain(key))
