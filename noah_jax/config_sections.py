"""Cuts the configuration into the sections that the parts of a run get."""

import copy
from typing import Any

from ml_collections import ConfigDict

from noah_jax.config import default_of, flat_config, head_key
from noah_jax.errors import InputError


def model_section(config: ConfigDict) -> dict[str, Any]:
    """Returns the arguments of `noah_jax.create_model` that are set, the head's options too.

    Raises:
      InputError: If an option of another kind of head is set.
    """
    arguments = {key: value for key, value in config.model.to_dict().items() if value is not None}
    kind = config.model.head or ("noah" if config.model.name.startswith("noah_") else "linear")
    flat = {f"head.{key}": value for key, value in flat_config(config.head).items()}
    own = {key: value for key, value in flat.items() if _is_option_of(kind, key)}
    for key in flat.keys() - own.keys():
        if flat[key] != default_of(key):
            raise InputError(
                f"{key}={flat[key]!r} is an option of another head; this model has the head {kind}"
            )
    options = {key.rpartition(".")[2]: value for key, value in own.items()}
    return arguments | ({"head_options": options} if options else {})


def task_section(config: ConfigDict) -> ConfigDict:
    """Returns the keys that say what is learnt."""
    return _cut_out(config, "loss", "asymmetric", "smoothing")


def augmentation_section(config: ConfigDict) -> ConfigDict:
    """Returns the keys of what is done to images and labels on the device."""
    mixing = ("mixup", "cutmix", "mix_prob", "mix_switch_prob", "mix_group")
    return _cut_out(config, "smoothing", "erase_prob", "cutout", *mixing)


def plan_section(config: ConfigDict) -> ConfigDict:
    """Returns the keys that say how long a run is and what it does how often."""
    intervals = ("log_every", "eval_every", "checkpoint_every", "keep_checkpoints")
    return _cut_out(config, "epochs", "batch_size", *intervals)


def initial_weights_section(config: ConfigDict) -> ConfigDict:
    """Returns the keys that name the weights to start with."""
    return _cut_out(config, "init_from", "init_ema")


def scaled(config: ConfigDict) -> ConfigDict:
    """Applies `scale_batch` (Goyal et al., 2017); returns the same configuration if it is 1.

    All learning rates of the schedule are multiplied by the factor, as the batch is. What is
    counted in epochs or in steps stays.

    Raises:
      InputError: If the scaled batch is not a whole number of images.
    """
    factor = config.scale_batch
    if factor == 1:
        return config
    batch_size = config.batch_size * factor
    if batch_size < 1 or batch_size != int(batch_size):
        raise InputError(
            f"scale_batch={factor:g} makes batch_size={config.batch_size} into {batch_size:g};"
            " it must be a whole number of images"
        )
    config = copy.deepcopy(config)
    config.scale_batch = 1.0
    config.batch_size = int(batch_size)
    for key in ("learning_rate", "warmup_learning_rate", "final_learning_rate"):
        config.optim[key] *= factor
    return config


def _cut_out(config: ConfigDict, *keys: str) -> ConfigDict:
    return ConfigDict({key: config[key] for key in keys})


def _is_option_of(kind: str, key: str) -> bool:
    return key == head_key(kind, key.rpartition(".")[2])
