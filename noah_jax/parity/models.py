"""Parity of whole models: evaluation logits against the original's in float64."""

import fnmatch
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from noah_jax.models import create_model, get_family, list_models
from noah_jax.models.base import Model, Tree
from noah_jax.parity.files import GoldenError, read_json, read_npz, read_salt, readings
from noah_jax.pytorch.golden import golden_images, golden_state_dict
from noah_jax.pytorch.mapping import to_jax

# Limit over PyTorch's own float32 error.
FACTOR, FLOOR = 5.0, 2e-6

_ARGUMENTS = ("num_classes", "image_size", "head_num", "key_ratio", "head_split", "kv_split")


def golden_model(
    name: str, spec: Mapping[str, Any], salt: str, dtype: str = "float32"
) -> tuple[Model, Tree]:
    """A model and its golden weights, `{"params": ..., "stats": ...}`.

    Args:
      name: a registered model.
      spec: its entry of `models.json.gz`.
      salt: the salt of the vectors.
      dtype: compute dtype.
    """
    family = get_family(name)
    arguments = {key: spec[key] for key in _ARGUMENTS if spec.get(key) is not None}
    if family.name == "deit":
        arguments["pre_logits"] = "pre_logits.fc.weight" in spec["state"]
    model = create_model(name, dtype=dtype, **arguments)
    params, stats = model.abstract()
    state = golden_state_dict(spec["state"], spec["gain"], salt)
    tree = to_jax(state, family.table, {"params": params, "stats": stats})
    return model, {"params": tree["params"], "stats": tree.get("stats", {})}


def model_error(name: str, spec: Mapping[str, Any], logits: np.ndarray, salt: str) -> float:
    """Max abs difference of a model's float32 logits, over the golden logits' std.

    Args:
      name: a registered model.
      spec: its entry of `models.json.gz`.
      logits: float64 golden logits, `[batch, num_classes]`.
      salt: the salt of the vectors.
    """
    model, weights = golden_model(name, spec, salt)
    apply = jax.jit(model.apply, static_argnames="train")

    def error(image_salt: str) -> float:
        images = golden_images(model.image_size[0], len(logits), image_salt)
        ours, _ = apply(weights["params"], weights["stats"], images, train=False)
        return float(np.abs(np.asarray(ours, np.float64) - logits).max() / logits.std())

    return min(error(image_salt) for image_salt in readings(salt))


def matching(names: Mapping[str, Any], pattern: str) -> list[str]:
    """The names that match a shell-style pattern, sorted.

    Raises:
      GoldenError: if there is none.
    """
    found = sorted(fnmatch.filter(names, pattern))
    if not found:
        raise GoldenError(
            f"no golden case matches {pattern!r}; there are {len(names)},"
            f" such as {', '.join(sorted(names)[:3])}"
        )
    return found


def check_models(folder: str, pattern: str) -> Iterator[bool]:
    """Prints a table of the golden models that match, worst first; yields the verdicts.

    While it computes, which takes a while, every model is named on stderr.
    """
    salt = read_salt(folder)
    specs = read_json(folder, "models.json.gz")
    names = matching(specs, pattern)
    rows = []
    with read_npz(folder, "logits.npz") as golden:
        for index, name in enumerate(names):
            print(f"[{index + 1}/{len(names)}] {name}", file=sys.stderr, flush=True)
            theirs = specs[name]["torch_float32_error"]
            limit = FACTOR * theirs + FLOOR
            if name not in golden:
                raise GoldenError(f"{folder}/logits.npz lacks {name}, which models.json.gz names")
            if name in list_models():
                error = model_error(name, specs[name], golden[name], salt)
            else:
                error = float("nan")  # not in the registry
            rows.append((name, error, theirs, limit))
    # NaN first, then by the share of the limit.
    rows.sort(key=lambda row: (row[1] == row[1], -row[1] / row[3]))
    width = max(map(len, names))
    print(f"{'model':{width}} {'max diff/std':>12} {'PyTorch float32':>15} {'limit':>9}")
    for name, error, theirs, limit in rows:
        agrees = error <= limit
        verdict = "agrees" if agrees else "FAILED"
        if name not in list_models():
            verdict = "FAILED: not in the registry"
        print(f"{name:{width}} {error:12.2e} {theirs:15.2e} {limit:9.2e} {verdict}")
        yield agrees
