"""Checks the models and the head against golden vectors of the original PyTorch code.

    python -m noah_jax.parity --golden DIR --models '*resnet*'
    python -m noah_jax.parity --golden DIR --head

DIR holds `golden.json`, `models.json.gz`, `logits.npz`, `head.json` and `head.npz`. A model
agrees when its float32 logits are no further from the float64 ones than 5 times PyTorch's
own float32 logits are, plus 2e-6 (all over the logits' standard deviation). A head case
agrees within 1e-5 of its largest value, gradients included. Exit code 1 if any disagrees.
"""

import argparse
import fnmatch
import gzip
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from noah_jax.convert.golden import golden_images, golden_state_dict, golden_tensor
from noah_jax.convert.names import TABLES, noah_table
from noah_jax.convert.table import to_jax, to_torch
from noah_jax.head import Projection, poca
from noah_jax.models import create_model, get_architecture, list_models

FACTOR, FLOOR = 5.0, 2e-6
HEAD_LIMIT = 1e-5


def model_error(name: str, spec: dict[str, Any], logits: np.ndarray, salt: str) -> float:
    """Max abs difference of a model's float32 logits, over the golden logits' std.

    Args:
      name: a registered model.
      spec: its entry of `models.json.gz`.
      logits: float64 golden logits, `[2, num_classes]`.
      salt: the salt of the vectors.
    """
    architecture = get_architecture(name)
    keys = ("num_classes", "image_size", "head_num", "key_ratio")
    model = create_model(name, **{key: spec[key] for key in keys if key in spec})
    params, stats = model.abstract()
    state = golden_state_dict(spec["state"], spec["gain"], salt)
    tree = to_jax(state, TABLES[architecture.family], {"params": params, "stats": stats})
    apply = jax.jit(model.apply, static_argnames="train")

    def error(image_salt: str) -> float:
        images = golden_images(spec["image_size"], len(logits), image_salt)
        ours, _ = apply(tree["params"], tree.get("stats", {}), images, train=False)
        return float(np.abs(np.asarray(ours, np.float64) - logits).max() / logits.std())

    return min(error(image_salt) for image_salt in _readings(salt))


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

    table = noah_table()
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


def check_models(folder: str, pattern: str) -> Iterator[bool]:
    """Prints one line per golden model that matches; yields whether it agrees."""
    salt = _json(folder, "golden.json")["salt"]
    specs = _json(folder, "models.json.gz")
    names = sorted(fnmatch.filter(specs, pattern))
    if not names:
        raise SystemExit(f"no golden model matches {pattern!r}; there are {len(specs)}")
    print(f"{'model':34} {'max diff/std':>12} {'PyTorch float32':>15} {'limit':>9}")
    with _npz(folder, "logits.npz") as golden:
        for name in names:
            if name not in list_models():
                print(f"{name:34} not in the registry: FAILED")
                yield False
                continue
            error = model_error(name, specs[name], golden[name], salt)
            theirs = specs[name]["torch_float32_error"]
            limit = FACTOR * theirs + FLOOR
            agrees = error <= limit
            verdict = "agrees" if agrees else "FAILED"
            print(f"{name:34} {error:12.2e} {theirs:15.2e} {limit:9.2e} {verdict}", flush=True)
            yield agrees


def check_head(folder: str) -> Iterator[bool]:
    """Prints one line per head case; yields whether it agrees."""
    salt = _json(folder, "golden.json")["salt"]
    cases = _json(folder, "head.json")
    print(f"{'head case':34} {'logits':>9} {'gradients':>9} {'limit':>9}")
    with _npz(folder, "head.npz") as arrays:
        for case in cases:
            index = case["index"]
            prefix = f"{index}/"
            golden = {k.removeprefix(prefix): arrays[k] for k in arrays if k.startswith(prefix)}
            readings = (head_errors(index, case, golden, reading) for reading in _readings(salt))
            errors = min(readings, key=lambda errors: max(errors.values()))
            logits = errors.pop("logits")
            worst = max(errors, key=errors.get)
            agrees = max(logits, errors[worst]) <= HEAD_LIMIT
            verdict = "agrees" if agrees else f"FAILED (worst gradient: {worst})"
            title = (
                f"{index}: C={case['channels']} K={case['num_classes']} N={case['head_num']}"
                f" r={case['key_ratio']:g} {case['height']}x{case['width']}"
                f"{'' if case['head_split'] else ' no head_split'}"
                f"{'' if case['kv_split'] else ' no kv_split'}"
            )
            print(f"{title:34} {logits:9.2e} {errors[worst]:9.2e} {HEAD_LIMIT:9.2e} {verdict}")
            yield agrees


def _readings(salt: str) -> tuple[str, ...]:
    """What may have salted the images, or the head's weights: the salt, or nothing.

    The vectors' description salts a model's weights but is silent on these. A wrong reading
    gives another input altogether and errors of order one, so taking the better of the two
    cannot hide a difference.
    """
    return (salt, "") if salt else ("",)


def _open(folder: str, name: str) -> str:
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        raise SystemExit(f"{path} is missing; --golden must be the folder of the golden vectors")
    return path


def _json(folder: str, name: str) -> Any:
    path = _open(folder, name)
    with gzip.open(path, "rt") if name.endswith(".gz") else open(path) as file:
        return json.load(file)


def _npz(folder: str, name: str) -> np.lib.npyio.NpzFile:
    return np.load(_open(folder, name))


def main(argv: list[str] | None = None) -> int:
    """Runs the checks the arguments ask for; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m noah_jax.parity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--golden", required=True, metavar="DIR", help="the golden vectors")
    parser.add_argument("--models", metavar="PATTERN", help="which models, shell-style")
    parser.add_argument("--head", action="store_true", help="the cases of the head alone")
    args = parser.parse_args(argv)
    if not args.head and args.models is None:
        parser.error("say what to check: --models PATTERN, --head or both")
    results = list(check_head(args.golden)) if args.head else []
    if args.models is not None:
        results += check_models(args.golden, args.models)
    failed = results.count(False)
    print(f"{len(results) - failed} of {len(results)} agree")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
