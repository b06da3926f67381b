"""Checks whole models: evaluation logits against the original's in float64."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from noah_jax.errors import ReadError
from noah_jax.models import create_model, get_family, list_models
from noah_jax.models.base import Model, Tree
from noah_jax.parity.golden_files import (
    matching,
    possible_salts,
    read_json,
    read_npz,
    read_salt,
)
from noah_jax.pytorch.golden import golden_images, golden_state_dict
from noah_jax.pytorch.mapping import to_jax

# The limit is FACTOR times PyTorch's own float32 error, plus FLOOR.
FACTOR, FLOOR = 5.0, 2e-6

_ARGUMENTS = ("num_classes", "image_size", "head_num", "key_ratio", "head_split", "kv_split")


def golden_model(
    name: str, spec: Mapping[str, Any], salt: str, dtype: str = "float32"
) -> tuple[Model, Tree]:
    """Creates a model with its golden weights.

    Args:
      name: Name of a registered model.
      spec: The model's entry in `models.json.gz`.
      salt: Salt of the golden vectors.
      dtype: Compute dtype.

    Returns:
      The model, and `{"params": ..., "stats": ...}`.
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
    """Computes the largest error of a model's float32 logits over the golden logits' std.

    Args:
      name: Name of a registered model.
      spec: The model's entry in `models.json.gz`.
      logits: Golden logits, float64 `[batch, num_classes]`.
      salt: Salt of the golden vectors.
    """
    model, weights = golden_model(name, spec, salt)

    def error(image_salt: str) -> float:
        images = golden_images(model.image_size[0], len(logits), image_salt)
        actual = np.asarray(model.predict(weights["params"], weights["stats"], images), np.float64)
        return float(np.abs(actual - logits).max() / logits.std())

    return min(error(image_salt) for image_salt in possible_salts(salt))


def check_models(folder: str, pattern: str) -> Iterator[bool]:
    """Prints a table of the golden models that match a pattern, the worst first.

    It takes a while, so the name of each model is printed on stderr as it is computed.

    Yields:
      Whether each model agrees.
    """
    salt = read_salt(folder)
    specs = read_json(folder, "models.json.gz")
    names = matching(specs, pattern)
    rows = []
    with read_npz(folder, "logits.npz") as golden:
        for index, name in enumerate(names):
            print(f"[{index + 1}/{len(names)}] {name}", file=sys.stderr, flush=True)
            torch_error = specs[name]["torch_float32_error"]
            limit = FACTOR * torch_error + FLOOR
            if name not in golden:
                raise ReadError(f"{folder}/logits.npz lacks {name}, which models.json.gz names")
            if name in list_models():
                error = model_error(name, specs[name], golden[name], salt)
            else:
                error = float("nan")  # not registered
            rows.append((name, error, torch_error, limit))
    # NaN comes first, then the largest fraction of the limit.
    rows.sort(key=lambda row: (row[1] == row[1], -row[1] / row[3]))
    width = max(map(len, names))
    print(f"{'model':{width}} {'max diff/std':>12} {'PyTorch float32':>15} {'limit':>9}")
    for name, error, torch_error, limit in rows:
        agrees = error <= limit
        verdict = "agrees" if agrees else "FAILED"
        if name not in list_models():
            verdict = "FAILED: not registered"
        print(f"{name:{width}} {error:12.2e} {torch_error:15.2e} {limit:9.2e} {verdict}")
        yield agrees
