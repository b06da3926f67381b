"""Parity of the head alone, gradients included."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from noah_jax.heads.noah.poca import Projection, poca
from noah_jax.models.conversion import noah_head
from noah_jax.parity.files import read_json, read_npz, read_salt, readings
from noah_jax.pytorch.golden import golden_tensor
from noah_jax.pytorch.mapping import to_jax, to_torch

LIMIT = 1e-5


def head_errors(
    index: int, case: dict[str, Any], golden: dict[str, np.ndarray], salt: str = ""
) -> dict[str, float]:
    """Differences of one head case, over its largest logit or its largest gradient.

    Args:
      index: the case's number.
      case: its entry of `head.json`.
      golden: its arrays of `head.npz`, without the number in their keys.
      salt: the salt of the weights.

    Returns:
      `{"logits": error, "grad_x": error, "grad_query.weight": error, ...}`.
    """
    state = {
        key: golden_tensor(f"head{index}.{key}", shape, salt=salt)
        for key, shape in case["state"].items()
    }
    random = np.random.RandomState(1000 + index)
    shape = (3, case["channels"], case["height"], case["width"])
    features = random.standard_normal(shape).astype(np.float32).transpose(0, 2, 3, 1)
    cotangent = random.standard_normal((3, case["num_classes"])).astype(np.float32)

    table = noah_head()
    head_num, num_classes = case["head_num"], case["num_classes"]
    abstract = {"params": {"head": {}}}
    for part in ("query", "value"):
        in_features = case["state"][f"{part}.weight"][1]
        abstract["params"]["head"][part] = {
            "kernel": np.broadcast_to(np.float32(0), (head_num, in_features, num_classes)),
            "bias": np.broadcast_to(np.float32(0), (head_num, num_classes)),
        }
    weights = to_jax({f"head.{k}": v for k, v in state.items()}, table, abstract)

    def function(features, weights):
        parts = weights["params"]["head"]
        query, value = (Projection(**parts[part]) for part in ("query", "value"))
        switches = {k: case[k] for k in ("key_ratio", "head_split", "kv_split")}
        return poca(features, query, value, **switches)

    @jax.jit
    def run(features, weights, cotangent):
        logits, pullback = jax.vjp(function, features, weights)
        return logits, *pullback(cotangent)

    logits, grad_x, grad_weights = run(features, weights, cotangent)
    ours = {"grad_x": np.asarray(grad_x).transpose(0, 3, 1, 2)}
    for key, grad in to_torch(grad_weights, table).items():
        ours["grad_" + key.removeprefix("head.")] = grad
    largest = max(np.abs(golden[key]).max() for key in ours)
    errors = {key: float(np.abs(ours[key] - golden[key]).max() / largest) for key in ours}
    scale = np.abs(golden["logits"]).max()
    errors["logits"] = float(np.abs(logits - golden["logits"]).max() / scale)
    return errors


def check_head(folder: str) -> Iterator[bool]:
    """Prints one line per head case; yields whether it agrees."""
    salt = read_salt(folder)
    cases = read_json(folder, "head.json")
    print(f"{'head case':34} {'logits':>9} {'gradients':>9} {'limit':>9}")
    with read_npz(folder, "head.npz") as arrays:
        for case in cases:
            index = case["index"]
            prefix = f"{index}/"
            golden = {k.removeprefix(prefix): arrays[k] for k in arrays if k.startswith(prefix)}
            errors = min(
                (head_errors(index, case, golden, reading) for reading in readings(salt)),
                key=lambda errors: max(errors.values()),
            )
            logits = errors.pop("logits")
            worst = max(errors, key=errors.get)
            agrees = max(logits, errors[worst]) <= LIMIT
            verdict = "agrees" if agrees else f"FAILED (worst gradient: {worst})"
            title = (
                f"{index}: C={case['channels']} K={case['num_classes']} N={case['head_num']}"
                f" r={case['key_ratio']:g} {case['height']}x{case['width']}"
                f"{'' if case['head_split'] else ' no head_split'}"
                f"{'' if case['kv_split'] else ' no kv_split'}"
            )
            print(f"{title:34} {logits:9.2e} {errors[worst]:9.2e} {LIMIT:9.2e} {verdict}")
            yield agrees
