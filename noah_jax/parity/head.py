"""Checks the head alone, gradients included."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from noah_jax.heads.noah import Projection, poca
from noah_jax.models.base import Tree
from noah_jax.models.conversion import noah_head
from noah_jax.parity.golden_files import (
    arrays_below,
    possible_salts,
    read_json,
    read_npz,
    read_salt,
)
from noah_jax.pytorch.golden import golden_tensor
from noah_jax.pytorch.mapping import to_jax, to_torch

LIMIT = 1e-5


def head_errors(
    index: int, case: Mapping[str, Any], golden: Mapping[str, np.ndarray], salt: str = ""
) -> dict[str, float]:
    """Computes the errors of one head case, over its largest logit or its largest gradient.

    Args:
      index: Number of the case.
      case: The case's entry in `head.json`.
      golden: The case's arrays in `head.npz`, without the number in their keys.
      salt: Salt of the weights.

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
    head: dict[str, Tree] = {}
    for part in ("query", "value"):
        in_features = case["state"][f"{part}.weight"][1]
        head[part] = {
            "kernel": np.broadcast_to(np.float32(0), (head_num, in_features, num_classes)),
            "bias": np.broadcast_to(np.float32(0), (head_num, num_classes)),
        }
    abstract = {"params": {"head": head}}
    weights = to_jax({f"head.{k}": v for k, v in state.items()}, table, abstract)

    def function(features: jax.Array, weights: Tree) -> jax.Array:
        parts = weights["params"]["head"]
        query, value = (Projection(**parts[part]) for part in ("query", "value"))
        switches = {k: case[k] for k in ("key_ratio", "head_split", "kv_split")}
        return poca(features, query, value, **switches)

    @jax.jit
    def run(
        features: jax.Array, weights: Tree, cotangent: jax.Array
    ) -> tuple[jax.Array, jax.Array, Tree]:
        logits, pullback = jax.vjp(function, features, weights)
        grad_features, grad_weights = pullback(cotangent)
        return logits, grad_features, grad_weights

    logits, grad_x, grad_weights = run(features, weights, cotangent)
    grads = {"grad_x": np.asarray(grad_x).transpose(0, 3, 1, 2)}
    for key, grad in to_torch(grad_weights, table).items():
        grads["grad_" + key.removeprefix("head.")] = grad
    largest = max(np.abs(golden[key]).max() for key in grads)
    errors = {key: float(np.abs(grad - golden[key]).max() / largest) for key, grad in grads.items()}
    scale = np.abs(golden["logits"]).max()
    errors["logits"] = float(np.abs(logits - golden["logits"]).max() / scale)
    return errors


def check_head(folder: str) -> Iterator[bool]:
    """Prints one line per head case; yields whether each agrees."""
    salt = read_salt(folder)
    cases = read_json(folder, "head.json")
    print(f"{'head case':34} {'logits':>9} {'gradients':>9} {'limit':>9}")
    with read_npz(folder, "head.npz") as arrays:
        for case in cases:
            index = case["index"]
            golden = arrays_below(arrays, str(index))
            errors = min(
                (head_errors(index, case, golden, choice) for choice in possible_salts(salt)),
                key=lambda errors: max(errors.values()),
            )
            logits = errors.pop("logits")
            worst = max(errors, key=errors.__getitem__)
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
