"""Reads and writes the block sizes that `noah-jax autotune` found on a machine's own GPU.

They lie in one JSON file beside the compilation cache: for each card, version of JAX, and shape
of a head, the fields of `BlockSizes`.
"""

import functools
import json
import os
import pathlib
from typing import Any

import jax

from noah_jax import compilation, console
from noah_jax.errors import one_line
from noah_jax.heads.noah.operands import PocaShape

_NAME = "noah_head_blocks.json"


def path() -> pathlib.Path:
    """Returns where the file lies, beside JAX's compilation cache."""
    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if not folder or "://" in str(folder):
        folder = os.path.expanduser(compilation.DEFAULT_CACHE)
    return pathlib.Path(folder).parent / _NAME


def block_sizes(shape: PocaShape, batch: int) -> dict[str, Any]:
    """Returns the block sizes that were found for a head on this kind of GPU, or none.

    Args:
      shape: Shape of the head.
      batch: Images on one GPU.
    """
    if jax.default_backend() != "gpu":
        return {}
    return dict(_read(path()).get(key(shape, batch), {}))


def store(shape: PocaShape, batch: int, sizes: dict[str, Any]) -> pathlib.Path:
    """Adds the block sizes of a head to the file, whole or not at all; returns its path."""
    from noah_jax import files  # here, because the head alone needs none of what that imports

    target = path()
    _read.cache_clear()
    everything = _read(target) | {key(shape, batch): sizes}
    files.make_folder(target.parent)
    files.write_text(target, json.dumps(everything, indent=1, sort_keys=True) + "\n")
    _read.cache_clear()
    return target


def key(shape: PocaShape, batch: int) -> str:
    """Returns what the block sizes hold for: the card, JAX's version and the shape."""
    query, value = shape.block_channels
    return (
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {shape.dtype}, {batch} images,"
        f" {shape.positions} positions, {shape.head_num} blocks of {query}+{value} channels in"
        f" {shape.channel_groups} groups, {shape.num_classes} classes,"
        f" {'with' if shape.dropout else 'without'} dropout"
    )


@functools.cache
def _read(target: pathlib.Path) -> dict[str, dict[str, Any]]:
    try:
        heads = json.loads(target.read_text())
        if not isinstance(heads, dict) or not all(isinstance(x, dict) for x in heads.values()):
            raise ValueError("it is not a table of block sizes")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        console.warn_once(f"{target} is ignored, remove it: {one_line(error)}")
        return {}
    return heads
