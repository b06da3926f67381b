"""Does the work of the converter: PyTorch's files to folders of this package, and back."""

import collections
import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from noah_jax.console import say, working
from noah_jax.data.preprocessing import ARCHITECTURE, SETTINGS
from noah_jax.errors import InputError
from noah_jax.files import whole
from noah_jax.heads.registry import unpublished_options
from noah_jax.hub.hugging_face import commit_of
from noah_jax.hub.names import is_elsewhere
from noah_jax.hub.released import fetch, sha256
from noah_jax.hub.resolve import local_checkpoint
from noah_jax.inference.description import imagenet_classes
from noah_jax.inference.initial_weights import HEAD_ONLY, fit_weights
from noah_jax.inference.loading import describe_weights, load_model, read_description
from noah_jax.inference.trained import FRESH
from noah_jax.models import create_model
from noah_jax.models.base import Model
from noah_jax.models.published import published
from noah_jax.models.start import Start
from noah_jax.pytorch.infer import HEADLESS
from noah_jax.pytorch.load import LoadedModel, load_torch
from noah_jax.pytorch.save import COUNTER, batch_counters, make_state_dict, state_dict_writer
from noah_jax.runs.destination import free_destination
from noah_jax.runs.model_folder import write_model_folder


def convert(
    source: str,
    destination: str,
    *,
    name: str | None = None,
    hint: str | None = None,
    ema: bool = False,
    arguments: Mapping[str, Any] | None = None,
    prefix: str | None = None,
    fresh_head: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
) -> LoadedModel:
    """Converts a PyTorch file to a folder that `noah_jax.load_model` reads; prints a summary.

    Args:
      source: The file, or a name that `noah_jax.hub.resolve.local_checkpoint` takes.
      destination: A folder, local or `gs://`, that does not exist or is empty. It appears whole
        or not at all; in a `gs://` folder, `model.json` is written last.
      name: Registered name of the model; `None` finds it.
      hint: What the model is called, see `load_torch`.
      ema: Convert the exponential moving average of the weights.
      arguments: Arguments of `create_model` that override what the file tells, and preprocessing
        of the weights, see `noah_jax.data.preprocessing.check_setting`.
      prefix: See `load_torch`.
      fresh_head: Take the backbone alone and draw a head for it: that of `name`, or else a linear
        one, with the `num_classes` and the other options of a head in `arguments`.
      dry_run: Write nothing.
      overwrite: Replace a folder that this function wrote before, once the new one is whole.

    Returns:
      The model and its weights.

    Raises:
      InputError: In one line, if the file cannot be read, no model fits it, or the folder is
        taken.
      WriteError: In one line, if the folder cannot be written.
    """
    target = free_destination(destination, folder=True, overwrite=overwrite)
    arguments = dict(arguments or {})
    settings = {key: arguments.pop(key) for key in SETTINGS if key in arguments}
    path = local_checkpoint(source)
    try:
        with working(f"reading {source}"):
            loaded = load_torch(
                path,
                name=name,
                hint=hint,
                ema=ema,
                arguments=_of_backbone(arguments) if fresh_head else arguments,
                prefix=prefix,
                backbone=fresh_head,
            )
            if fresh_head:
                loaded = _with_fresh_head(loaded, name, arguments)
    except TypeError as error:
        if not arguments:
            raise
        # create_model leaves the types of some arguments to its callers.
        raise InputError(f"an argument of --set has a value of a wrong type: {error}") from error
    preprocessing = describe_weights(loaded, source, settings)
    for line in _summary(source, loaded, hint):
        say(line)
    if dry_run:
        say(f"dry run: {destination} would hold this; nothing was written")
        return loaded
    metadata = {
        "name": loaded.model.name,
        "arguments": loaded.model.arguments,
        "preprocessing": preprocessing.to_json(),
        **_named_classes(loaded.model),
        **({"training": x} if (x := loaded.config.own.get("training")) else {}),
        "source": {
            "file": os.path.basename(path),
            "sha256": sha256(path),
            **({"from": source, "commit": commit_of(path)} if is_elsewhere(source) else {}),
            "weights": loaded.weights.weights,
            "layout": loaded.weights.layout,
            "facts": loaded.weights.metadata,
            COUNTER: batch_counters(loaded.weights.state_dict),
            **({"head": FRESH} if fresh_head else {}),
        },
    }
    tree = {"params": loaded.params, "stats": loaded.stats}
    write_model_folder(target, metadata, tree, overwrite=overwrite)
    say(f"saved in {destination}: noah_jax.load_model({destination!r})")
    return loaded


def _named_classes(model: Model) -> dict[str, list[str]]:
    """Returns the names of a model's classes for `model.json`, unless they are ImageNet's."""
    names = model.class_names
    usual = names is None or names == tuple(imagenet_classes())
    return {} if usual else {"class_names": list(names or ())}


def _of_backbone(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key not in HEAD_ONLY}


def _with_fresh_head(
    loaded: LoadedModel, name: str | None, arguments: Mapping[str, Any]
) -> LoadedModel:
    """Draws a head for a backbone that was loaded without one."""
    source = loaded.model
    # A class token is there if the head reads it.
    backbone = _of_backbone(source.arguments)
    backbone.pop("class_token", None)
    model = create_model(name or source.name, **{**backbone, **arguments})
    initial = fit_weights(source, loaded.params, loaded.stats, model, where="--head fresh")
    model.start = Start(initial.params, initial.stats)
    params, stats = model.init(jax.random.key(0))
    lines = (line for line in initial.lines if not line.startswith("the head is fresh"))
    kind = model.arguments["head"]
    said = f"the head is fresh ({kind}, {model.num_classes} classes): train it before you use it"
    notes = (said, *lines, *(note for note in loaded.notes if note != HEADLESS))
    return dataclasses.replace(loaded, model=model, params=params, stats=stats, notes=notes)


def convert_released(
    release: str,
    destination: str,
    *,
    cache: str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> LoadedModel:
    """Downloads a checkpoint that the authors released and converts it.

    Args:
      release: Name of the released checkpoint.
      destination: See `convert`.
      cache: Folder for downloads, see `fetch`.
      overwrite: See `convert`.
      **options: Other arguments of `convert`.
    """
    # The download may take long, so the destination is checked before it.
    free_destination(destination, folder=True, overwrite=overwrite)
    source = fetch(release, cache=cache)
    return convert(source, destination, hint=release, overwrite=overwrite, **options)


def convert_to_torch(source: str, destination: str, *, overwrite: bool = False) -> None:
    """Writes the model in a folder as a PyTorch state dict with the original's names.

    Args:
      source: A folder that `noah_jax.load_model` reads, local or `gs://`.
      destination: A new file, `.safetensors` or, if PyTorch is installed, `.pth`.
      overwrite: Replace a local file, once the new one is whole.

    Raises:
      InputError: In one line, if the source is a file, or the destination is taken or has another
        suffix.
      MissingError: If the folder holds no model.
      CheckpointError: If no checkpoint in the folder can be used.
    """
    write = state_dict_writer(destination)
    target = free_destination(destination, folder=False, overwrite=overwrite)
    folder = epath.Path(local_checkpoint(source))
    if folder.is_file():
        raise InputError(f"{source} is a file; --to-torch takes the folder of a model")
    with working(f"loading {source}"):
        model, params, stats = load_model(source)
    metadata = read_description(folder)
    counters = metadata.get("source", {}).get(COUNTER, 0)
    state_dict = make_state_dict(model, params, stats, counters=counters)
    with working(f"writing {destination}"), whole(target) as path:
        write(state_dict, path, model)
    say(f"{model.name}: {len(state_dict)} tensors in {destination}")


def _summary(source: str, loaded: LoadedModel, hint: str | None) -> Iterator[str]:
    """Yields lines that say what is converted."""
    model, weights = loaded.model, loaded.weights
    yield f"{source}: {_LAYOUTS[weights.layout]}"
    yield f"  model    {model.name}: {model.num_params:,} parameters"
    if hint in published():
        release = published()[hint]
        yield (
            f"  released {hint}: {release.params_millions} million parameters, top-1"
            f" {release.top1} % published"
        )
    arguments = model.arguments
    head = f"{arguments['head']} head, {model.num_classes} classes"
    if arguments["head"] == "noah":
        head += f", N = {arguments['head_num']}, r = {arguments['key_ratio']:g}"
    if options := unpublished_options(arguments["head"], arguments["head_options"]):
        head += f", {options}"
    if "pre_logits" in arguments:
        head += f", {'with' if arguments['pre_logits'] else 'without'} pre_logits"
    yield f"  head     {'none' if arguments['features_only'] else head}"
    yield f"  images   {model.image_size[0]} x {model.image_size[1]} pixels"
    if model.preprocessing is not None:
        yield f"  prepared {model.preprocessing.describe()}"
        if ARCHITECTURE in model.preprocessing.sources.values():
            yield (
                "  note     the file does not tell all of how images were prepared in its training;"
                " where it was otherwise, --set mean=... std=... resize=... crop=..."
                " interpolation=... says so"
            )
    if weights.weights == "ema":
        yield "  weights  EMA (the moving average; without --ema the raw ones)"
    elif weights.has_ema:
        yield "  weights  raw (--ema takes the moving average that the file has too)"
    else:
        yield "  weights  raw (the file has no EMA weights)"
    short = {k: v for k, v in weights.metadata.items() if isinstance(v, int | float | str)}
    if short:
        yield "  file     " + ", ".join(f"{key} {_short(value)}" for key, value in short.items())
    rounded = collections.Counter(str(x.dtype) for x in weights.state_dict.values() if _is_wide(x))
    for dtype, count in rounded.items():
        yield f"  note     {count} {dtype} tensor(s) are rounded to float32"
    for note in loaded.notes:
        yield f"  note     {note}"


_LAYOUTS = {
    "cnn": "a checkpoint of the CNN training",
    "deit": "a checkpoint of the DeiT training",
    "pvt": "a checkpoint of the PVT training",
    "timm": "a checkpoint of timm's training",
    "lightning": "a checkpoint of Lightning",
    "deepspeed": "a checkpoint of DeepSpeed",
    "wrapped": "a checkpoint with a state dict",
    "bare": "a state dict",
    "safetensors": "a safetensors file",
}


def _is_wide(x: np.ndarray) -> bool:
    """Says whether float32 cannot hold the numbers of an array."""
    return jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize > 4


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)[:60]
