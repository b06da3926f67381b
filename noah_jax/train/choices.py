"""Chooses what a configuration leaves open: by the weights to start with, and by the set's size.

A key of `noah_jax.config` whose comment says so may be None. `settle` replaces it. The run's
folder keeps what was chosen, so a resumed run takes that and does not choose again.
"""

import copy
from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from noah_jax.config import flat_config, head_key, left_open
from noah_jax.errors import InputError, NoahError
from noah_jax.inference.loading import load_description
from noah_jax.models.create import NOAH_ARGUMENTS

_FRESH_MODEL = "resnet18"
# These arguments of a model belong to its training; a run that starts from it sets its own.
_TRAINING_ARGUMENTS = frozenset(
    {
        *("num_classes", "features_only", "batch_norm_group", "remat", "dtype"),
        *("drop_rate", "drop_path_rate", "head_drop_rate"),
    }
)

_SMALLEST_BATCH, _LARGEST_BATCH = 8, 128
_STEPS_PER_EPOCH = 16  # As many as a small set should have.
_LOGS_PER_EPOCH = 4
_LARGEST_LOG_INTERVAL = 50
# Enough steps to fit a new head and to adapt a trunk, or to learn everything from the beginning;
# within so many epochs.
_FINE_TUNING_STEPS, _FINE_TUNING_EPOCHS = 500, (10.0, 60.0)
_FRESH_STEPS, _FRESH_EPOCHS = 2000, (30.0, 150.0)
_WARMUP_FRACTION = 0.1
_LONGEST_WARMUP = 500  # In steps.
_TRUNK_FACTOR = 0.1  # Of the head's learning rate, for weights that know images already.


def leaves_open(config: ConfigDict) -> bool:
    """Says whether anything is to be chosen."""
    flat = flat_config(config)
    return any(left_open(key, flat) for key in flat)


def remember(config: ConfigDict, saved: Mapping[str, Any] | None) -> ConfigDict:
    """Fills in what an earlier start of the run chose.

    Args:
      config: The configuration.
      saved: The configuration in the run's folder, as nested dicts; `None` if there is none.
    """
    given = flat_config(config)
    chosen = {
        key: value
        for key, value in flatten_dict(dict(saved or {}), sep=".").items()
        if left_open(key, given) and value is not None
    }
    config = copy.deepcopy(config)
    model = {}
    for key, value in chosen.items():
        section, _, name = key.rpartition(".")
        if section == "model":
            model[name] = _as_tuple(value)
        else:
            config.update_from_flattened_dict({key: _as_tuple(value)})
    if model:
        config.model = ConfigDict(config.model.to_dict() | model)
    return config


def settle_model(config: ConfigDict) -> ConfigDict:
    """Chooses the model if `model.name` is None: that of `init_from`, with its normalisation.

    `model.head` says which head it gets; by default it keeps its own. Arguments that the
    configuration sets win. Without `init_from` it is a ResNet-18.

    Raises:
      InputError: If `init_from` holds no model.
    """
    if config.model.name is not None:
        return config
    flat = flat_config(config)
    config = copy.deepcopy(config)
    given = {key: value for key, value in config.model.items() if value is not None}
    head = given.get("head")
    if config.init_from is None:
        arguments: dict[str, Any] = {"name": _FRESH_MODEL}
    else:
        try:
            source = load_description(config.init_from)
        except NoahError as error:
            raise InputError(f"init_from={config.init_from}: {error}") from error
        arguments = {k: v for k, v in source.arguments.items() if k not in _TRAINING_ARGUMENTS}
        if head not in (None, arguments["head"]):
            arguments = {k: v for k, v in arguments.items() if k not in NOAH_ARGUMENTS}
            arguments["head_options"] = {}
        head = head or arguments["head"]
        arguments["name"] = source.name.removeprefix("noah_")
        height, width = source.image_size
        arguments["image_size"] = height if height == width else (height, width)
    if head == "noah":
        arguments["name"] = f"noah_{arguments['name']}"
    for option, value in arguments.pop("head_options", {}).items():
        key = head_key(arguments["head"], option)
        if left_open(key, flat):
            config.update_from_flattened_dict({key: value})
    config.model = ConfigDict(arguments | given)
    if config.init_from is not None and config.data.mean is None and config.data.std is None:
        config.data.mean, config.data.std = source.mean, source.std
    return config


def settle_by_size(config: ConfigDict, *, num_images: int, num_devices: int) -> ConfigDict:
    """Chooses what the number of images in an epoch says.

    The batch is the largest power of two of which an epoch has 16, but no less than 8 and no more
    than 128 images, rounded up to what the devices divide. The run has 500 steps, or 2,000 if it
    starts afresh, but at least 10 (30) epochs and at most 60 (150). A tenth of it, but no more than
    500 steps, is warm-up. There are about four log lines an epoch. Weights that `init_from` brings
    learn at a tenth of the head's rate, unless `optim.layer_decay` slows them down.

    Args:
      config: The configuration.
      num_images: Number of images in an epoch.
      num_devices: Number of devices.
    """
    config = copy.deepcopy(config)
    if config.batch_size is None:
        power = 2 ** max((num_images // _STEPS_PER_EPOCH).bit_length() - 1, 0)
        batch_size = min(max(power, _SMALLEST_BATCH), _LARGEST_BATCH)
        config.batch_size = -(-batch_size // num_devices) * num_devices
    steps_per_epoch = num_images / config.batch_size
    fresh = config.init_from is None
    if config.epochs is None:
        steps, (fewest, most) = (
            (_FRESH_STEPS, _FRESH_EPOCHS) if fresh else (_FINE_TUNING_STEPS, _FINE_TUNING_EPOCHS)
        )
        config.epochs = min(max(float(round(steps / steps_per_epoch)), fewest), most)
    if config.log_every is None:
        interval = round(steps_per_epoch / _LOGS_PER_EPOCH)
        config.log_every = min(max(interval, 1), _LARGEST_LOG_INTERVAL)
    if config.optim.warmup_epochs is None:
        longest = _LONGEST_WARMUP / steps_per_epoch
        config.optim.warmup_epochs = (
            0.0  # The schedule has a rise of its own.
            if config.optim.schedule == "one_cycle"
            else min(_WARMUP_FRACTION * config.epochs, longest)
        )
    if config.ema_decay is None and config.ema_span:
        span = config.ema_span * config.epochs * steps_per_epoch  # In steps.
        config.ema_decay = 1 - 1 / max(span, 2)
    if config.optim.param_groups is None:
        one_rate = fresh or config.optim.layer_decay is not None
        groups = () if one_rate else (("^(?!head/)", _TRUNK_FACTOR),)
        config.optim.param_groups = groups
    return config


def _as_tuple(value: Any) -> Any:
    """Turns the lists of JSON into the tuples they were."""
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value
