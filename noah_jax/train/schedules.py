"""The learning rate by step: smooth, or held during every epoch as the originals do."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from noah_jax.errors import InputError

_NAMES = ("cosine", "linear", "constant", "step")


def make_schedule(
    config: Mapping[str, Any], *, epochs: float, steps_per_epoch: float
) -> optax.Schedule:
    """The learning rate by step.

    Smooth, the warm-up rises with every step and the rest of the schedule spans the steps that
    are left. With `per_epoch` it is what the originals' schedulers give when they are called
    once an epoch: the warm-up rises with every epoch from `warmup_learning_rate` itself, the
    rest counts epochs from the start of the run, and `lr_delay_epochs` holds all of it back.

    Args:
      config: the `optim` section of the configuration.
      epochs: of the whole run.
      steps_per_epoch: steps of one epoch, need not be whole; a step belongs to the epoch of its
        first image.

    Raises:
      ValueError: on an unknown schedule, a warm-up as long as the run, or a delay without
        epochs.
    """
    if config["schedule"] not in _NAMES:
        raise InputError(
            f"optim.schedule must be {', '.join(_NAMES[:-1])} or {_NAMES[-1]},"
            f" got {config['schedule']!r}"
        )
    total_steps = round(epochs * steps_per_epoch)
    warmup = round(config["warmup_epochs"] * steps_per_epoch)
    if not 0 <= warmup < max(total_steps, 1):
        raise InputError(
            f"optim.warmup_epochs={config['warmup_epochs']} are {warmup} steps;"
            f" they must be fewer than the run's {total_steps}"
        )
    late = config["lr_delay_epochs"]
    if late < 0 or (late and not config["per_epoch"]):
        raise InputError(
            f"optim.lr_delay_epochs={late} must be 0 or more, and 0 unless optim.per_epoch=True"
        )
    if config["per_epoch"]:
        return _by_epoch(config, epochs, steps_per_epoch)
    return _by_step(config, total_steps, steps_per_epoch, warmup)


def _by_step(config, total_steps: int, steps_per_epoch: float, warmup: int) -> optax.Schedule:
    peak, final = config["learning_rate"], config["final_learning_rate"]
    rest = total_steps - warmup
    if config["schedule"] == "cosine":
        main = optax.cosine_decay_schedule(peak, rest, final / peak if peak else 0.0)
    elif config["schedule"] == "linear":
        main = optax.linear_schedule(peak, final, rest)
    elif config["schedule"] == "constant":
        main = optax.constant_schedule(peak)
    else:
        bounds = {round(e * steps_per_epoch) - warmup: 0.1 for e in config["step_epochs"]}
        main = optax.piecewise_constant_schedule(peak, bounds)
    if not warmup:
        return main
    # The first step already moves: step i of the warm-up has gone (i + 1) / warmup of the way.
    start = config["warmup_learning_rate"]
    first = start + (peak - start) / warmup
    rise = optax.linear_schedule(first, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, main], [warmup])


def _by_epoch(config, epochs: float, steps_per_epoch: float) -> optax.Schedule:
    rate = _rate_in_epoch(config, epochs)
    count = math.ceil(epochs)
    # A table, so that neither long runs nor float32 blur where an epoch begins.
    rates = np.array(
        [rate(max(e - config["lr_delay_epochs"], 0)) for e in range(count)], np.float32
    )
    # Of a whole number, the product may be a rounding error above it.
    starts = np.array([math.ceil(e * steps_per_epoch - 1e-6) for e in range(count)], np.int32)

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        epoch = jnp.searchsorted(jnp.asarray(starts), step, side="right") - 1
        return jnp.asarray(rates)[epoch]

    return schedule


def _rate_in_epoch(config: Mapping[str, Any], epochs: float) -> Callable[[int], float]:
    peak, final = config["learning_rate"], config["final_learning_rate"]
    start, warmup = config["warmup_learning_rate"], config["warmup_epochs"]

    def rate(epoch: int) -> float:
        if epoch < warmup:
            return start + epoch * (peak - start) / warmup
        if config["schedule"] == "cosine":
            return final + (peak - final) * (1 + math.cos(math.pi * epoch / epochs)) / 2
        if config["schedule"] == "linear":
            return peak + (final - peak) * epoch / epochs
        if config["schedule"] == "step":
            return peak * 0.1 ** sum(epoch >= e for e in config["step_epochs"])
        return peak

    return rate
