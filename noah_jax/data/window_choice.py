"""Decides whether training images are shuffled as a whole or within windows of shards.

A shuffle of all images reads every shard all the time, which a cache that is smaller than the set
cannot serve: each shard would be downloaded thousands of times in an epoch.
"""

from collections.abc import Sequence
from typing import Any

from noah_jax.data.shard_order import ShardWindows
from noah_jax.data.source import Source
from noah_jax.data.streaming.sets import ShardSet, shard_set
from noah_jax.errors import InputError

# More shards mix no better, and the first step waits for a whole window.
_LARGEST_WINDOW = 64
# No more of the cache than this is kept free for the evaluation.
_EVAL_FRACTION = 0.25
_LOOKED_AT = 16  # images of a shard whose classes are looked at
_GIGABYTE = 10**9


def choose_window(window: int | None, train: Source, evaluation: Source) -> int | None:
    """Chooses how many shards are shuffled together, and checks what was chosen.

    Args:
      window: `data.shuffle_window`.
      train: The training images.
      evaluation: The evaluation images, which share the cache with them.

    Returns:
      The number of shards, 0 for all images as a whole; `None` if that is so because nothing speaks
      against it.

    Raises:
      InputError: If the images are not in shards, the cache is too small for the window or larger
        than its disk, or nothing was chosen and the shards are sorted by class; says what to set.
    """
    if window and not _lengths(train):
        raise InputError(
            f"data.shuffle_window={window} needs images in shards, and {train.name} has none; leave"
            " it away"
        )
    shards = shard_set(train)
    if shards is None or not shards.remote:
        return window
    eval_shards = shard_set(evaluation)
    shards.cache.check_space(shards.size + (eval_shards.size if eval_shards is not None else 0))
    room = _room(shards, eval_shards)
    largest = max(shard.size for shard in shards.shards)
    sizes = (
        f"{train.name} has {len(shards.shards):,} shards with {_gigabytes(shards.size)}, and"
        f" data.cache_gb={shards.cache.capacity / _GIGABYTE:g} leaves {_gigabytes(room)} for them"
    )
    if shards.size <= room:
        return window
    if (window or 1) * largest > room:
        words = f"data.shuffle_window={window}" if window else "a single one"
        raise InputError(f"{sizes}, too little for {words}; raise data.cache_gb")
    if window == 0:
        raise InputError(
            f"{sizes}, too little to shuffle all images; raise data.cache_gb, or shuffle within"
            " windows of shards (data.shuffle_window)"
        )
    if window is None:
        window = max(1, min(_LARGEST_WINDOW, room // (2 * largest)))
        _check_mixed(train, shards, sizes)
    shards.keep_open(window)
    return window


def make_windows(window: int | None, train: Source) -> ShardWindows | None:
    """Makes the order by windows; `None` for the order of all images.

    Args:
      window: What `choose_window` returns.
      train: The training images.
    """
    return ShardWindows(tuple(_lengths(train)), window) if window else None


def describe_window(windows: ShardWindows | None, train: Source) -> str | None:
    """Says in one line how images are shuffled, if it is not as a whole, or how they come here."""
    shards = shard_set(train)
    if windows is not None:
        count = len(windows.shard_lengths)
        words = (
            f"the images are shuffled within windows of {windows.shards_per_window} of {count:,}"
            " shards, drawn anew each epoch, not as a whole"
        )
        return words + (f"; {_where(shards)}" if shards is not None and shards.remote else "")
    if shards is None or not shards.remote:
        return None
    missing = sum(not shards.cache.holds(shard) for shard in shards.shards)
    return f"{_where(shards)}, {missing:,} of {len(shards.shards):,} shards are to be downloaded"


def _where(shards: ShardSet[Any]) -> str:
    return (
        f"{shards.cache.folder} keeps up to {_gigabytes(shards.cache.capacity)} of their"
        f" {_gigabytes(shards.size)}"
    )


def _gigabytes(size: int) -> str:
    return f"{size / _GIGABYTE:,.4g} GB"


def _lengths(source: Source) -> Sequence[int]:
    return getattr(source, "shard_lengths", ())


def _room(train: ShardSet[Any], evaluation: ShardSet[Any] | None) -> int:
    """Returns the bytes of the cache that the training may have."""
    capacity = train.cache.capacity
    if evaluation is None or not evaluation.remote:
        return capacity
    return capacity - min(evaluation.size, int(capacity * _EVAL_FRACTION))


def _check_mixed(train: Source, shards: ShardSet[Any], sizes: str) -> None:
    """Raises if a shard has images of one class only: windows would train on few at a time."""
    if train.multi_label or len(train.class_names) < 2:
        return
    number = max(range(len(shards.lengths)), key=shards.lengths.__getitem__)
    first, count = sum(shards.lengths[:number]), shards.lengths[number]
    indices = {first + count * i // _LOOKED_AT for i in range(_LOOKED_AT)}
    if len(indices) > 1 and len({train[index][1] for index in indices}) == 1:
        raise InputError(
            f"{sizes}; shuffled within windows of shards, batches would have few classes, because"
            f" {shards.shards[number].name} has one class only: raise data.cache_gb, write the set"
            " in a random order, or set data.shuffle_window to go on all the same"
        )
