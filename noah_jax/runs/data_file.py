"""Remembers in a run's folder which data it was trained on, and compares them at a resume."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from noah_jax.errors import InputError, ReadError
from noah_jax.runs.run_dir import DATA_FILE, MODEL_FILE

_MAX_LISTED = 3
_SPLITS = {"train": "the training images", "eval": "the evaluation images"}


def check_data(workdir: epath.Path, record: Mapping[str, Any], *, allow_change: bool) -> list[str]:
    """Compares the data of a resumed run with those that its folder remembers.

    Args:
      workdir: The run's folder, which has checkpoints.
      record: What `noah_jax.data.record.record_data` returns for the present data.
      allow_change: The configuration's `data.allow_change`.

    Returns:
      Lines for the log: what changed, or that the folder remembered nothing.

    Raises:
      InputError: If the data are others and that is not allowed, or the number of classes is
        another one, which no run can go on with; says what differs.
      ReadError: If the folder's record cannot be read.
    """
    saved = _read(workdir / DATA_FILE)
    lines = []
    if saved is None:
        lines.append(
            f"{workdir} is of an earlier version and does not say which images it was trained on;"
            f" from now on {DATA_FILE} does"
        )
        # But such a run knows the names of its classes.
        saved = _read(workdir / MODEL_FILE) or {}
    differing = list(_differences(saved, record))
    if not differing:
        return lines
    surplus = len(differing) - _MAX_LISTED
    more = f" (and {surplus} more)" if surplus > 0 else ""
    listed = "; ".join(differing[:_MAX_LISTED]) + more
    classes = record["class_names"]
    if len(saved.get("class_names", classes)) != len(classes):
        raise InputError(
            f"{workdir} holds a run on other classes: {listed}; give it its classes back, or start"
            f" another run from its weights with --config.init_from={workdir}"
        )
    if not allow_change:
        raise InputError(
            f"{workdir} holds a run on other data: {listed}; give it its data back, choose another"
            " --workdir, or go on all the same with --config.data.allow_change=True"
        )
    return [*lines, f"the data changed, as data.allow_change=True allows: {listed}"]


def describe_classes(before: Sequence[str], now: Sequence[str]) -> str:
    """Says in words how the classes of two datasets differ; empty if they do not."""
    if list(before) == list(now):
        return ""
    gone = [name for name in before if name not in set(now)]
    new = [name for name in now if name not in set(before)]
    if not gone and not new:
        return "the classes are in another order"
    if len(before) == len(now) and len(gone) == len(new):
        renamed = [f"{old!r} is now {name!r}" for old, name in zip(gone, new, strict=True)]
        moved = [old for old, name in zip(before, now, strict=True) if old != name]
        order = " and the classes are in another order" if len(moved) > len(gone) else ""
        return f"the class {_listed(renamed)}{order}"
    parts = [f"the class {_listed([repr(name) for name in new])} is new"] if new else []
    parts += [f"the class {_listed([repr(name) for name in gone])} is gone"] if gone else []
    return " and ".join(parts)


def _differences(saved: Mapping[str, Any], record: Mapping[str, Any]) -> Iterator[str]:
    """Yields in words what differs; what an old folder does not know does not."""
    names = record["class_names"]
    if classes := describe_classes(saved.get("class_names", names), names):
        yield classes
    for split, words in _SPLITS.items():
        before, now = saved.get(split, record[split]), record[split]
        if before == now:
            continue
        if before["images"] != now["images"]:
            yield f"{words} were {before['images']:,} and are {now['images']:,}" + _by_class(
                before, now, names
            )
        elif before.get("name") != now.get("name"):
            yield f"{words} were {before.get('name', 'files')} and are {now.get('name', 'files')}"
        elif before.get("pixels") != now.get("pixels"):
            images = (split.get("pixels", "as they were taken") for split in (before, now))
            yield f"{words} were {next(images)} and are {next(images)}"
        elif not classes:
            yield f"{words} are as many, but other files or in another order"


def _by_class(before: Mapping[str, Any], now: Mapping[str, Any], names: Sequence[str]) -> str:
    """Names the classes whose number of images changed, where that is known for each class."""
    counts = [split.get("images_by_class") or [] for split in (before, now)]
    if not len(counts[0]) == len(counts[1]) == len(names):
        return ""
    changed = [
        f"{name!r} {old:,} and {new:,}"
        for name, old, new in zip(names, *counts, strict=True)
        if old != new
    ]
    return f" ({_listed(changed)})" if changed else ""


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - _MAX_LISTED} more" if len(words) > _MAX_LISTED else ""
    return ", ".join(words[:_MAX_LISTED]) + more


def _read(path: epath.Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ReadError(f"{path} cannot be read: {error}") from error
    if not isinstance(record, dict):
        raise ReadError(f"{path} does not describe the data of a run; remove it to go on")
    return record
