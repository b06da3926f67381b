"""Counts a run in images and steps: its batches, its length and its intervals."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from noah_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Plan:
    """How many images and steps a run has.

    Attributes:
      batch_size: Images per step over all devices.
      accumulate: Micro-batches that a batch is computed in.
      eval_batch_size: Images per evaluation step over all devices.
      steps_per_epoch: Steps of one epoch, not rounded.
      total_steps: Steps of the whole run.
      log_every: Steps between two log lines.
      eval_every: Steps between two evaluations.
      checkpoint_every: Steps between two checkpoints.
    """

    batch_size: int
    accumulate: int
    eval_batch_size: int
    steps_per_epoch: float
    total_steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int


def make_plan(
    section: Mapping[str, Any],
    *,
    accumulate: int,
    eval_batch_size: int,
    epoch_length: int,
) -> Plan:
    """Counts the steps of a run.

    Args:
      section: See `noah_jax.config_sections.plan_section`.
      accumulate: Micro-batches that a batch is computed in.
      eval_batch_size: Images per evaluation step over all devices.
      epoch_length: Images of an epoch.

    Raises:
      InputError: If the run has no step.
    """
    batch_size = section["batch_size"]
    steps_per_epoch = epoch_length / batch_size
    total_steps = round(section["epochs"] * steps_per_epoch)
    if total_steps < 1:
        raise InputError(
            f"epochs={section['epochs']} of {epoch_length} images in batches of"
            f" {batch_size} are less than one step"
        )
    whole_epoch = math.ceil(steps_per_epoch)
    return Plan(
        batch_size=batch_size,
        accumulate=accumulate,
        eval_batch_size=eval_batch_size,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        log_every=section["log_every"],
        eval_every=section["eval_every"] or whole_epoch,
        checkpoint_every=section["checkpoint_every"] or whole_epoch,
    )
