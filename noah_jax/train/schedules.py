"""Makes the learning rate by step: smooth, or held during every epoch as the originals do."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from noah_jax.errors import InputError

_NAMES = ("cosine", "linear", "constant", "step", "one_cycle")


def make_schedule(
    section: Mapping[str, Any], *, epochs: float, steps_per_epoch: float
) -> optax.Schedule:
    """Makes the function from a step, counted from 0, to its learning rate.

    A smooth schedule's warm-up rises with every step, and the rest spans the steps that are left.
    With `per_epoch` the result is what the originals' schedulers give when they are called once
    an epoch: the warm-up rises with every epoch and starts at `warmup_learning_rate` itself, the
    rest counts epochs from the start of the run, and `lr_delay_epochs` delays all of it.

    Args:
      section: The section `optim` of the configuration.
      epochs: Epochs of the whole run.
      steps_per_epoch: Steps of one epoch, which need not be a whole number. A step belongs to the
        epoch of its first image.

    Raises:
      InputError: If the schedule is unknown, the warm-up is as long as the run, there is a delay
        without `per_epoch`, or "one_cycle" comes with a warm-up or `per_epoch`.
    """
    if section["schedule"] not in _NAMES:
        raise InputError(
            f"optim.schedule must be {', '.join(_NAMES[:-1])} or {_NAMES[-1]},"
            f" got {section['schedule']!r}"
        )
    total_steps = round(epochs * steps_per_epoch)
    warmup = round(section["warmup_epochs"] * steps_per_epoch)
    if not 0 <= warmup < max(total_steps, 1):
        raise InputError(
            f"optim.warmup_epochs={section['warmup_epochs']} are {warmup} steps;"
            f" they must be fewer than the run's {total_steps}"
        )
    delay = section["lr_delay_epochs"]
    if delay < 0 or (delay and not section["per_epoch"]):
        raise InputError(
            f"optim.lr_delay_epochs={delay} must be 0 or more, and 0 unless optim.per_epoch=True"
        )
    if section["schedule"] == "one_cycle":
        return _one_cycle_rate(section, total_steps, warmup)
    if section["per_epoch"]:
        return _by_epoch(section, epochs, steps_per_epoch)
    return _by_step(section, total_steps, steps_per_epoch, warmup)


def make_momentum_schedule(
    section: Mapping[str, Any], *, epochs: float, steps_per_epoch: float
) -> optax.Schedule | None:
    """Makes the function from a step to its momentum (Adam's beta1), where it changes.

    "one_cycle" lowers the momentum while it raises the learning rate, as PyTorch's does.

    Args:
      section: The section `optim` of the configuration.
      epochs: Epochs of the whole run.
      steps_per_epoch: Steps of one epoch.

    Returns:
      The function; `None` if the momentum stays as it is.
    """
    cycle = section["one_cycle"]
    if section["schedule"] != "one_cycle" or cycle["momentum"] is None:
        return None
    lowest, highest = cycle["momentum"]
    total_steps = round(epochs * steps_per_epoch)
    return _one_cycle(cycle["pct_start"], total_steps, highest, lowest, highest)


def _one_cycle_rate(section: Mapping[str, Any], total_steps: int, warmup: int) -> optax.Schedule:
    if warmup or section["per_epoch"]:
        key = "warmup_epochs" if warmup else "per_epoch"
        raise InputError(
            f"optim.{key}={section[key]} does not go with optim.schedule=one_cycle, which rises"
            " during optim.one_cycle.pct_start of the run, step by step"
        )
    cycle, peak = section["one_cycle"], section["learning_rate"]
    first = peak / cycle["div_factor"]
    last = first / cycle["final_div_factor"]
    return _one_cycle(cycle["pct_start"], total_steps, first, peak, last)


def _one_cycle(
    pct_start: float, total_steps: int, first: float, peak: float, last: float
) -> optax.Schedule:
    """Goes from `first` to `peak` and then to `last`, each by half a cosine (Smith, 2018)."""
    top = pct_start * total_steps - 1  # PyTorch's step of the peak, no whole number in general.

    def between(start: float, end: float, fraction: jax.Array) -> jax.Array:
        return end + (start - end) / 2 * (1 + jnp.cos(jnp.pi * jnp.clip(fraction, 0, 1)))

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rise = between(first, peak, step / (top or 1))
        fall = between(peak, last, (step - top) / (total_steps - 1 - top))
        return jnp.where(step <= top, rise, fall)

    return schedule


def _by_step(
    section: Mapping[str, Any], total_steps: int, steps_per_epoch: float, warmup: int
) -> optax.Schedule:
    peak, final = section["learning_rate"], section["final_learning_rate"]
    rest = total_steps - warmup
    if section["schedule"] == "cosine":
        main = optax.cosine_decay_schedule(peak, rest, final / peak if peak else 0.0)
    elif section["schedule"] == "linear":
        main = optax.linear_schedule(peak, final, rest)
    elif section["schedule"] == "constant":
        main = optax.constant_schedule(peak)
    else:
        bounds = {round(e * steps_per_epoch) - warmup: 0.1 for e in section["step_epochs"]}
        main = optax.piecewise_constant_schedule(peak, bounds)
    if not warmup:
        return main
    # Step i of the warm-up has gone (i + 1) / warmup of the way, so the first step moves already.
    start = section["warmup_learning_rate"]
    first = start + (peak - start) / warmup
    rise = optax.linear_schedule(first, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, main], [warmup])


def _by_epoch(section: Mapping[str, Any], epochs: float, steps_per_epoch: float) -> optax.Schedule:
    rate = _rate_in_epoch(section, epochs)
    count = math.ceil(epochs)
    # A table of epochs, because float32 would blur where an epoch begins in a long run.
    rates = np.array(
        [rate(max(e - section["lr_delay_epochs"], 0)) for e in range(count)], np.float32
    )
    # Where the product is a whole number it may come out a rounding error above it.
    starts = np.array([math.ceil(e * steps_per_epoch - 1e-6) for e in range(count)], np.int32)

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        epoch = jnp.searchsorted(jnp.asarray(starts), step, side="right") - 1
        return jnp.asarray(rates)[epoch]

    return schedule


def _rate_in_epoch(section: Mapping[str, Any], epochs: float) -> Callable[[int], float]:
    peak, final = section["learning_rate"], section["final_learning_rate"]
    start, warmup = section["warmup_learning_rate"], section["warmup_epochs"]

    def rate(epoch: int) -> float:
        if epoch < warmup:
            return start + epoch * (peak - start) / warmup
        if section["schedule"] == "cosine":
            return final + (peak - final) * (1 + math.cos(math.pi * epoch / epochs)) / 2
        if section["schedule"] == "linear":
            return peak + (final - peak) * epoch / epochs
        if section["schedule"] == "step":
            return peak * 0.1 ** sum(epoch >= e for e in section["step_epochs"])
        return peak

    return rate
