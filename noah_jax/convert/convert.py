"""Weights from PyTorch's files into folders of this project, and out."""

import collections
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from noah_jax.console import say
from noah_jax.errors import InputError
from noah_jax.files import whole
from noah_jax.inference.loading import load_model
from noah_jax.models import get_family
from noah_jax.models.published import published
from noah_jax.pytorch.load import Loaded, load_torch
from noah_jax.pytorch.mapping import to_torch
from noah_jax.pytorch.released import sha256
from noah_jax.runs import run_dir as workdirs
from noah_jax.runs.checkpoints import save_model
from noah_jax.runs.destination import free

_COUNTER = "num_batches_tracked"


def convert(
    source: str,
    destination: str,
    *,
    name: str | None = None,
    hint: str | None = None,
    ema: bool = False,
    arguments: Mapping[str, Any] | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
) -> Loaded:
    """Converts a PyTorch file into a folder that `noah_jax.load_model` reads, and says how.

    Args:
      source: the file, see `load_torch`.
      destination: a folder, local or `gs://`, that does not exist or is empty; made whole or not
        at all (of a `gs://` folder the `model.json` is written last).
      name: the registered name; `None` finds it.
      hint: what the model is called, see `load_torch`.
      ema: take the EMA weights.
      arguments: of `create_model`, over what the file tells.
      dry_run: write nothing.
      overwrite: replace a folder that this function wrote before; it stays as it was until the
        new one is whole.

    Raises:
      ValueError: in one line, if the file cannot be read, no model fits it, or the folder is
        taken.
    """
    target = free(destination, folder=True, overwrite=overwrite)
    loaded = load_torch(source, name=name, hint=hint, ema=ema, arguments=arguments)
    for line in _plan(source, loaded, hint):
        say(line)
    if dry_run:
        say(f"dry run: {destination} would hold this; nothing was written")
        return loaded
    facts = {
        "name": loaded.model.name,
        "arguments": loaded.model.arguments,
        "source": {
            "file": os.path.basename(source),
            "sha256": sha256(source),
            "weights": loaded.weights.weights,
            "layout": loaded.weights.layout,
            "facts": loaded.weights.metadata,
            _COUNTER: _counters(loaded.weights.state_dict),
        },
    }
    with whole(target, overwrite=overwrite, last=workdirs.MODEL_FILE) as partial:
        partial.mkdir()
        tree = {"params": loaded.params, "stats": loaded.stats}
        save_model(partial / workdirs.CHECKPOINTS, tree)
        (partial / workdirs.MODEL_FILE).write_text(json.dumps(facts, indent=2) + "\n")
    say(f"saved in {destination}: noah_jax.load_model({destination!r})")
    return loaded


def export(source: str, destination: str, *, overwrite: bool = False) -> None:
    """Writes a folder's model as a PyTorch state dict with the original's names.

    Args:
      source: a folder that `noah_jax.load_model` reads.
      destination: a new file, `.safetensors` or, where PyTorch is installed, `.pth`.
      overwrite: replace a file, once the new one is whole.

    Raises:
      ValueError: in one line, if the file is taken or of another kind.
      FileNotFoundError: if the folder holds no model.
      CheckpointError: if no checkpoint in it can be used.
    """
    save = _writer(destination)
    target = free(destination, folder=False, overwrite=overwrite)
    model, params, stats = load_model(source)
    facts = json.loads((pathlib.Path(source) / workdirs.MODEL_FILE).read_text())
    tree = {"params": params, "stats": stats}
    state = to_torch(tree, get_family(model.name).table)
    state |= _restored_counters(state, facts.get("source", {}).get(_COUNTER))
    with whole(target) as partial:
        save(state, partial, model.name)
    say(f"{model.name}: {len(state)} tensors in {destination}")


def _plan(source: str, loaded: Loaded, hint: str | None) -> Iterator[str]:
    """What is converted, in lines."""
    model, weights = loaded.model, loaded.weights
    yield f"{source}: {_LAYOUTS[weights.layout]}"
    yield f"  model    {model.name}: {model.num_params:,} parameters"
    if hint in published():
        known = published()[hint]
        yield (
            f"  released {hint}: {known.params_millions} million parameters, top-1 {known.top1} %"
            " published"
        )
    arguments = model.arguments
    head = f"{arguments['head']} head, {model.num_classes} classes"
    if arguments["head"] == "noah":
        head += f", N = {arguments['head_num']}, r = {arguments['key_ratio']:g}"
    if "pre_logits" in arguments:
        head += f", {'with' if arguments['pre_logits'] else 'without'} pre_logits"
    yield f"  head     {head}"
    yield f"  images   {model.image_size[0]} x {model.image_size[1]} pixels"
    if weights.weights == "ema":
        yield "  weights  EMA (the moving average; without --ema the raw ones)"
    elif weights.has_ema:
        yield "  weights  raw (--ema takes the moving average that the file has too)"
    else:
        yield "  weights  raw (the file has no EMA weights)"
    told = {k: v for k, v in weights.metadata.items() if isinstance(v, int | float | str)}
    if told:
        yield "  file     " + ", ".join(f"{key} {_short(value)}" for key, value in told.items())
    wide = collections.Counter(
        str(x.dtype) for key, x in weights.state_dict.items() if _lossy(key, x)
    )
    for dtype, count in wide.items():
        yield f"  note     {count} {dtype} tensor(s) are rounded to float32"
    for note in loaded.notes:
        yield f"  note     {note}"


_LAYOUTS = {
    "cnn": "a checkpoint of the CNN training",
    "deit": "a checkpoint of the DeiT training",
    "pvt": "a checkpoint of the PVT training",
    "timm": "a checkpoint of timm's training",
    "wrapped": "a checkpoint with a state dict",
    "bare": "a state dict",
    "safetensors": "a safetensors file",
}


def _lossy(key: str, x: np.ndarray) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize > 4


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)[:60]


def _counters(state_dict: Mapping[str, np.ndarray]) -> int | dict[str, int]:
    """BatchNorm's batch counters, which nothing here needs: one number where all are equal."""
    found = {key: int(value) for key, value in state_dict.items() if key.endswith(f".{_COUNTER}")}
    values = set(found.values())
    return found if len(values) > 1 else max(values, default=0)


def _restored_counters(
    state: Mapping[str, np.ndarray], kept: int | Mapping[str, int] | None
) -> dict[str, np.ndarray]:
    """The counters that the original's strict loading expects, 0 where none were kept."""
    keys = [key.removesuffix("running_mean") + _COUNTER for key in state if _is_mean(key)]
    numbers = kept if isinstance(kept, Mapping) else dict.fromkeys(keys, kept or 0)
    return {key: np.asarray(numbers.get(key, 0), np.int64) for key in keys}


def _is_mean(key: str) -> bool:
    return key.endswith(".running_mean")


def _writer(destination: str) -> Callable[[dict[str, np.ndarray], pathlib.Path, str], None]:
    """How a state dict is written into a file of that name."""
    suffix = pathlib.Path(destination).suffix
    if suffix == ".safetensors":
        return lambda state, path, name: save_file(
            state, path, metadata={"format": "pt", "model": name}
        )
    if suffix != ".pth":
        raise InputError(f"{destination} must end in .safetensors or .pth")
    try:
        import torch  # an optional dependency, which only this needs
    except ImportError:
        raise InputError(
            f"writing {destination} needs PyTorch, which is not installed: pip install torch, or"
            " write .safetensors, which PyTorch reads with safetensors.torch.load_file"
        ) from None

    def save(state: dict[str, np.ndarray], path: pathlib.Path, name: str) -> None:
        # Copies, because PyTorch wants arrays that it may write to.
        torch.save({key: torch.tensor(value) for key, value in state.items()}, path)

    return save
