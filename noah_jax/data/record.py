"""Records what a run's data are, so that a resumed run notices when they are others."""

import hashlib
import json
import os
from typing import Any

import numpy as np

from noah_jax.data.shard_order import ShardWindows
from noah_jax.data.shrunk import shrinking_of
from noah_jax.data.source import ImageFiles, Source


def record_data(
    train: Source, evaluation: Source, *, windows: ShardWindows | None = None
) -> dict[str, Any]:
    """Describes the images of a run by what tells them from others, without reading any.

    Args:
      train: The training images.
      evaluation: The evaluation images.
      windows: The windows of shards within which training images are shuffled, if they are.

    Returns:
      `class_names`, and for `train` and `eval` the number of `images` and, where the images are
      files or in shards that have an index, `images_by_class` (with one label an image) and a
      `fingerprint` of the files' names, labels and order; else the `name` of the dataset, its
      version and the split, and the `pixels` of images that were shrunk. With windows, `shards`
      stands for the lengths of the shards. It does not depend on where the files lie, so all hosts
      have the same.
    """
    record = _record_split(train)
    if windows is not None:  # Then their order depends on the shards' lengths too.
        lengths = json.dumps(windows.shard_lengths).encode()
        record["shards"] = hashlib.sha256(lengths).hexdigest()
    return {
        "class_names": list(train.class_names),
        "train": record,
        "eval": _record_split(evaluation),
    }


def _record_split(source: Source) -> dict[str, Any]:
    record: dict[str, Any] = {"images": len(source)}
    if known := getattr(source, "fingerprint", None):  # of shards and tables
        if by_class := getattr(source, "images_by_class", None):
            record["images_by_class"] = by_class
        return record | {"fingerprint": known}
    if not isinstance(source, ImageFiles):
        shrinking = shrinking_of(source)
        pixels = {} if shrinking is None else {"pixels": shrinking.describe()}
        return record | {"name": source.name} | pixels
    if not source.multi_label:
        labels = np.array([label for _, label in source.files], int)
        record["images_by_class"] = np.bincount(labels, minlength=len(source.class_names)).tolist()
    return record | {"fingerprint": fingerprint(source)}


def fingerprint(source: ImageFiles) -> str:
    """Returns a SHA-256 of the paths below the folder that all files share, and of the labels."""
    paths = [path for path, _ in source.files]
    # What the first and the last path by name share, all paths share. Unlike commonpath, this
    # leaves gs:// as it is.
    prefix = os.path.commonprefix([min(paths), max(paths)])  # noqa: RUF071
    shared = prefix.rpartition("/")[0]
    lines = [
        f"{path[len(shared) :]}\t{label if isinstance(label, int) else label.tolist()}\n"
        for path, label in source.files
    ]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
