"""What keys of the configuration were called before, and what others call them."""

from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from noah_jax.config import flat_config
from noah_jax.errors import InputError, near_matches

# Old names of keys and what they are called now. The `config.json` of old runs has the old ones.
RENAMED_KEYS = {
    "data.fast_images": "data.approximate_decode",
    "data.on_damage": "data.on_corrupt_image",
    "optim.groups": "optim.param_groups",
    "optim.late_epochs": "optim.lr_delay_epochs",
}


def rename_old_keys(flat: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Gives the keys of an old configuration the names they have now.

    Args:
      flat: What `flat_config` returns.

    Returns:
      The configuration under the present names, and the old names that it had.
    """
    old = [key for key in RENAMED_KEYS if key in flat]
    return {RENAMED_KEYS.get(key, key): value for key, value in flat.items()}, old


def refuse_old_keys(config: ConfigDict) -> None:
    """Raises an InputError if a key that was renamed is set under its old name."""
    _, old = rename_old_keys(flat_config(config))
    if old:
        raise InputError(explain_unknown_key(old[0], ()))


# What others call a key, by its last part. A near match would not find these.
_OTHER_NAMES = {
    "amp": "model.dtype",
    "arch": "model.name",
    "batch": "batch_size",
    "bs": "batch_size",
    "clip": "optim.clip_grad_norm",
    "clip_grad": "optim.clip_grad_norm",
    "data_dir": "data.dir",
    "data_path": "dataset",
    "drop": "model.drop_rate",
    "drop_path": "model.drop_path_rate",
    "dropout": "model.head_drop_rate",
    "ema": "ema_decay",
    "finetune": "init_from",
    "grad_accum": "optim.accumulate",
    "img_size": "model.image_size",
    "input_size": "model.image_size",
    "label_smoothing": "smoothing",
    "lr": "optim.learning_rate",
    "min_lr": "optim.final_learning_rate",
    "model": "model.name",
    "opt": "optim.name",
    "optimizer": "optim.name",
    "precision": "model.dtype",
    "pretrained": "init_from",
    "scheduler": "optim.schedule",
    "sched": "optim.schedule",
    "threads": "data.num_threads",
    "train_batch": "batch_size",
    "warmup": "optim.warmup_epochs",
    "warmup_lr": "optim.warmup_learning_rate",
    "wd": "optim.weight_decay",
    "weights": "init_from",
    "workers": "data.num_workers",
}


def explain_unknown_key(key: str, known: Collection[str]) -> str:
    """Says that a key does not exist, and what it is called now or might be called."""
    if key in RENAMED_KEYS:
        return f"the configuration has no key {key}: it was renamed to {RENAMED_KEYS[key]}"
    near = similar_key(key, known)
    hint = f"; did you mean {near}?" if near else "; noah_jax/config.py lists all keys"
    return f"the configuration has no key {key}{hint}"


def similar_key(key: str, known: Collection[str]) -> str | None:
    """Returns the key that a word may mean: another program's name for it, or one spelt alike.

    Args:
      key: What was written, with or without the section in front, such as `lr` or `optim.lr`.
      known: The keys to choose from, such as `optim.learning_rate`.
    """
    words = key.replace("-", "_")
    last = words.rpartition(".")[2]
    if (meant := _OTHER_NAMES.get(last)) in known:
        return meant
    same = [name for name in known if name.rpartition(".")[2] == last]
    return next(iter(same or near_matches(words, known)), None)
