"""PyTorch's rules of initialisation and weight decay, from state-dict keys and shapes alone.

Nothing here looks at our layers: the keys and shapes are those of the original's models
(`models.json.gz`), the rules are what its code does with them. As a program it writes the
two golden texts that the tests compare with:

    python tests/models/torch_rules.py
"""

import functools
import gzip
import json
import math
import pathlib
import re
from collections.abc import Iterable, Iterator

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from noah_jax import create_model
from noah_jax.models import get_family
from noah_jax.pytorch.mapping import to_torch
from tests.helpers import GOLDEN

MEMBERS = [
    prefix + name
    for name in (
        "resnet18",
        "mobilenetv2_035",
        "mobilenetv3_small",
        "shufflenetv2_050",
        "deit_tiny_050_patch16_224",
        "pvt_tiny_050",
        "mixer_s16_050_224",
        "gmixer_12_224",
        "resmlp_12_224",
        "gmlp_ti16_050_224",
    )
    for prefix in ("", "noah_")
]
LAYER_SCALES = {"12": 1e-4, "24": 1e-5, "36": 1e-6, "big": 1e-6}
# The standard deviation of a standard normal that is cut at +-2.
TRUNCATED_STD = 0.87962566103423978

Shapes = dict[str, tuple[int, ...]]


cached_model = functools.cache(create_model)


@functools.cache
def golden_models() -> dict:
    """What `models.json.gz` says of every model."""
    with gzip.open(GOLDEN / "models.json.gz", "rt") as file:
        return json.load(file)


def check_counts(family: str, counts: dict[str, int]) -> None:
    """The models that the original has of a family have these numbers of parameters.

    `test_every_model.py` compares those that are made here with the original's.
    """
    golden = {name: spec["num_params"] for name, spec in golden_models().items()}
    assert counts == {name: n for name, n in golden.items() if get_family(name).name == family}


@functools.cache
def undecayed_keys() -> dict[str, set[str]]:
    """PyTorch keys of the parameters that weight decay spares, by model, in the golden text."""
    spared: dict[str, set[str]] = {}
    for name, lines in read_sections(GOLDEN / "undecayed.txt").items():
        spared[name] = set()
        for pattern, count in map(str.split, lines):
            keys = set(expand(pattern))
            assert len(keys) == int(count), pattern
            spared[name] |= keys
    return spared


def torch_params(name: str) -> Shapes:
    """Shapes of a model's trainable tensors by PyTorch key, in PyTorch's order."""
    spec = golden_models()[name]
    return {key: tuple(spec["state"][key]) for key in spec["params"]}


def normal(std: float) -> str:
    return f"normal std={std:.6g}"


def uniform(bound: float) -> str:
    return f"uniform bound={bound:.6g}"


def truncated_normal(std: float) -> str:
    """Cut at two standard deviations of the uncut normal, `std` that of what is left."""
    return f"truncated_normal std={std:.6g} bound={2 * std / TRUNCATED_STD:.6g}"


def constant(value: float) -> str:
    return f"constant {value:g}"


def halves(first: str, second: str) -> str:
    """The first half of the outputs and the second."""
    return f"{first} | {second}"


def initialiser(name: str, key: str, params: Shapes) -> str:
    """What the original draws the tensor at `key` of the model `name` from.

    Returns:
      `normal std=S`, `uniform bound=B`, `truncated_normal std=S bound=B`, `constant C`, or
      two of these divided by ` | ` for the two halves of a layer's outputs.
    """
    family = get_family(name).name
    shape = params[key]
    layer, _, kind = key.rpartition(".")
    # Fans as torch.nn.init computes them: from the weight's shape, whatever the groups.
    weight = params.get(f"{layer}.weight", shape)
    fan_in = math.prod(weight[1:])
    fan_out = weight[0] * math.prod(weight[2:])

    if kind in ("alpha", "beta"):
        return constant(1 if kind == "alpha" else 0)
    if kind in ("ls1", "ls2"):
        return constant(LAYER_SCALES[re.search(r"resmlp_(\w+?)_", name)[1]])
    if len(weight) == 1:  # BatchNorm, LayerNorm
        return constant(1 if kind == "weight" else 0)
    if layer.endswith((".query", ".value")):
        if kind == "bias":
            return constant(0)
        # The MLP family's initialisation comes after the head's own and meets it too.
        return truncated_normal(fan_in**-0.5) if family == "mlp" else normal((2 / fan_out) ** 0.5)
    if family in ("resnet", "mobilenetv2", "mobilenetv3"):
        if kind == "bias":
            return constant(0)
        return normal((2 / fan_out) ** 0.5 if len(shape) == 4 else 0.01)
    if family == "shufflenetv2":  # nothing but PyTorch's defaults
        return uniform(fan_in**-0.5)
    if family in ("deit", "pvt"):
        if len(weight) == 4:  # patch embeddings and reductions: PyTorch's defaults
            return uniform(fan_in**-0.5)
        return constant(0) if kind == "bias" else normal(0.02)
    assert family == "mlp", family
    return _mlp_initialiser(name, layer, kind, weight)


def _mlp_initialiser(name: str, layer: str, kind: str, weight: tuple[int, ...]) -> str:
    if len(weight) == 4:
        return constant(0) if kind == "bias" else truncated_normal(math.prod(weight[1:]) ** -0.5)
    if layer == "head":
        return constant(0)
    if layer.endswith(".gate.proj"):
        return constant(1) if kind == "bias" else normal(1e-6)
    if kind == "weight":
        text, gate = uniform((6 / sum(weight)) ** 0.5), normal(1e-6)  # Xavier
    else:
        text, gate = normal(1e-6) if ".mlp_" in layer else constant(0), constant(1)
    return halves(text, gate) if "gmixer" in name and layer.endswith(".fc1") else text


def initialisers(name: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Our shape and PyTorch's initialiser of every parameter, by our path."""
    params, _ = cached_model(name).abstract()
    torch = torch_params(name)
    ours = {key: path for path, key in torch_keys(name, params).items()}
    shapes = flatten_dict(params, sep="/")
    return {ours[key]: (shapes[ours[key]].shape, initialiser(name, key, torch)) for key in torch}


def torch_keys(name: str, params: dict) -> dict[str, str]:
    """The PyTorch key of every parameter, by our path."""
    # Every parameter as its number, in its rank: the conversion table says where it goes.
    leaves = flatten_dict(params, sep="/")
    numbers = {path: np.full((1,) * leaf.ndim, i) for i, (path, leaf) in enumerate(leaves.items())}
    torch = to_torch({"params": unflatten_dict(numbers, sep="/")}, get_family(name).table)
    paths = list(leaves)
    return {paths[number.item()]: key for key, number in torch.items()}


def undecayed(name: str) -> list[str]:
    """PyTorch keys of the parameters that the recipe's weight decay spares."""
    family = get_family(name).name
    if family in ("resnet", "mobilenetv2"):
        return []
    also = {"deit": ("pos_embed", "cls_token"), "pvt": ("cls_token",)}.get(family, ())
    return [
        key
        for key, shape in torch_params(name).items()
        if len(shape) <= 1 or key.endswith(".bias") or key in also
    ]


def collapse(keys: Iterable[str]) -> list[str]:
    """Keys that differ in one number as one pattern, `blocks.{0..11}.norm1.bias`."""
    # A key as text and sets of numbers in turn; merged at one number after another.
    items = [re.split(r"(\d+)", key) for key in keys]
    items = [tuple((p,) if i % 2 else p for i, p in enumerate(parts)) for parts in items]
    for place in range(1, max(map(len, items), default=0), 2):
        merged: dict = {}
        for item in items:
            numbers = item[place] if place < len(item) else ()
            rest = item[:place] + item[place + 1 :]
            merged[rest] = merged.get(rest, ()) + numbers
        items = [
            (*rest[:place], numbers, *rest[place:]) if numbers else rest
            for rest, numbers in merged.items()
        ]
    return ["".join(p if isinstance(p, str) else _range(p) for p in item) for item in items]


def _range(numbers: tuple[str, ...]) -> str:
    if len(numbers) == 1:
        return numbers[0]
    numbers = sorted(map(int, numbers))
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs]
    return "{" + ",".join(texts) + "}"


def expand(pattern: str) -> Iterator[str]:
    """The keys that a pattern of `collapse` stands for."""
    found = re.search(r"\{([^}]*)\}", pattern)
    if not found:
        yield pattern
        return
    for run in found[1].split(","):
        first, _, last = run.partition("..")
        for number in range(int(first), int(last or first) + 1):
            yield from expand(pattern[: found.start()] + str(number) + pattern[found.end() :])


def read_sections(path: pathlib.Path) -> dict[str, list[str]]:
    """Lines under `[name, name, ...]` by name; `#` starts a comment line."""
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in path.read_text().splitlines():
        if line.startswith("["):
            lines = []
            sections.update(dict.fromkeys(re.findall(r"[\w.]+", line), lines))
        elif line and not line.startswith("#"):
            lines.append(line)
    return sections


def initialisers_text() -> str:
    """The golden text of initialisers."""
    lines = [
        "# The original's initialiser of every parameter: path, shape (ours), distribution.",
        "# `|` divides the first half of the last axis from the second.",
        "# Written by tests/models/torch_rules.py from PyTorch's keys and shapes.",
    ]
    for name in MEMBERS:
        lines += ["", f"[{name}]"]
        for path, (shape, text) in initialisers(name).items():
            lines.append(f"{path}  {'x'.join(map(str, shape))}  {text}")
    return "\n".join(lines) + "\n"


def undecayed_text() -> str:
    """The golden text of undecayed parameters."""
    lines = [
        "# PyTorch keys of the parameters that the recipes' weight decay spares, with how many",
        "# each line stands for; models with the same ones share a list.",
        "# Written by tests/models/torch_rules.py from PyTorch's keys and shapes.",
    ]
    same: dict[tuple[str, ...], list[str]] = {}
    for name in golden_models():
        same.setdefault(tuple(undecayed(name)), []).append(name)
    for keys, sharing in same.items():
        lines += ["", f"[{', '.join(sharing)}]"]
        lines += [f"{pattern}  {sum(1 for _ in expand(pattern))}" for pattern in collapse(keys)]
    return "\n".join(lines) + "\n"


def main() -> None:
    (GOLDEN / "initialisers.txt").write_text(initialisers_text())
    (GOLDEN / "undecayed.txt").write_text(undecayed_text())


if __name__ == "__main__":
    main()
