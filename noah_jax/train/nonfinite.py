"""Finds non-finite losses and weights before they are saved, and writes down where they were."""

import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from noah_jax.files import write_text


def finite_leaves(tree: Any) -> dict[str, jax.Array]:
    """Returns by path whether each array of floats is finite throughout; can be jitted."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): jnp.isfinite(leaf).all()
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }


def first_bad_step(losses: Sequence[tuple[int, Any]]) -> int | None:
    """Returns the first step whose loss is not finite, given pairs of a step and its loss."""
    values = jax.device_get([loss for _, loss in losses])
    bad = [step for (step, _), loss in zip(losses, values, strict=True) if not np.isfinite(loss)]
    return bad[0] if bad else None


def write_report(workdir: epath.Path, step: int, details: dict[str, Any]) -> epath.Path:
    """Writes `nonfinite-STEP.json` on the first process; returns its path."""
    path = workdir / f"nonfinite-{step}.json"
    if jax.process_index() == 0:
        write_text(path, json.dumps({"step": step, **details}, indent=2) + "\n")
    return path
