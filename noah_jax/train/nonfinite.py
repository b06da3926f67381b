"""Non-finite losses and weights: found before they are saved, and written down."""

import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from noah_jax.files import write_text


def finite_leaves(tree: Any) -> dict[str, jax.Array]:
    """Whether each array of floats is finite throughout, by its path; to be jitted."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): jnp.isfinite(leaf).all()
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }


def first_bad_step(losses: Sequence[tuple[int, Any]]) -> int | None:
    """The first step whose loss is not finite, of pairs of a step and its loss."""
    values = jax.device_get([loss for _, loss in losses])
    bad = [step for (step, _), loss in zip(losses, values, strict=True) if not np.isfinite(loss)]
    return bad[0] if bad else None


def dump(workdir: epath.Path, step: int, facts: dict[str, Any]) -> epath.Path:
    """Writes `nonfinite-STEP.json` on the first process; returns where."""
    path = workdir / f"nonfinite-{step}.json"
    if jax.process_index() == 0:
        write_text(path, json.dumps({"step": step, **facts}, indent=2) + "\n")
    return path
