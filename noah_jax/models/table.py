"""Formats the tables of models, heads and weights that `python -m noah_jax.models` prints."""

import dataclasses
import fractions
import json
from collections.abc import Iterator, Sequence

from noah_jax.models.create import create_model
from noah_jax.models.flops import multiply_adds
from noah_jax.models.pretrained import PretrainedWeights
from noah_jax.models.published import published

_SOURCE = "NOAH README"
_LINE = "{:36} {:>12} {:>9} {:>6}  {:12} {:>2} {!s:>4}"
HEADER = _LINE.format("model", "parameters/M", "FLOPs/G", "top-1", "source", "N", "r")

_HEAD_LINE = "{:28} {:16} {:>12} {:>10} {:>9} {:>10}"
HEADS_HEADER = _HEAD_LINE.format(
    "backbone", "head", "parameters/M", "its own/M", "FLOPs/G", "its own/G"
)

_WEIGHTS_LINE = "{:30} {:>6} {:>5} {:>5} {:>7}  {:18} {}"
PRETRAINED_HEADER = _WEIGHTS_LINE.format(
    "model", "top-1", "side", "crop", "classes", "licence", "checkpoint"
)


def row(name: str, head: str | None = None) -> str:
    """Returns the line of the table for a registered model.

    Args:
      name: The registered name.
      head: A kind of head in place of the one that the name says; nobody published its accuracy.
    """
    model = create_model(name, head=head)
    figures = published().get(name) if head is None else None
    top1, source = (f"{figures.top1:.2f}", _SOURCE) if figures else ("-", "-")
    head_num, ratio = "-", "-"
    if model.arguments["head"] == "noah":
        head_num = str(model.arguments["head_num"])
        ratio = str(fractions.Fraction(model.arguments["key_ratio"]).limit_denominator(64))
    millions = model.num_params / 1e6
    billions = multiply_adds(model) / 1e9
    return _LINE.format(name, f"{millions:.3f}", f"{billions:.3f}", top1, source, head_num, ratio)


def head_rows(name: str, heads: Sequence[str]) -> Iterator[str]:
    """Formats a line for each head on a backbone.

    Args:
      name: A registered backbone.
      heads: Names of heads; options have their defaults.
    """
    trunks: dict[bool, int] = {}  # with a class token for the linear head, and without
    for head in heads:
        model, trunk = (create_model(name, head=head, features_only=bare) for bare in (False, True))
        total, key = multiply_adds(model), head == "linear"
        if key not in trunks:
            trunks[key] = multiply_adds(trunk)
        figures = (
            model.num_params / 1e6,
            (model.num_params - trunk.num_params) / 1e6,
            total / 1e9,
            (total - trunks[key]) / 1e9,
        )
        yield _HEAD_LINE.format(name, head, *(f"{figure:.4f}" for figure in figures))


def pretrained_row(weights: PretrainedWeights) -> str:
    """Returns the line of the table for published weights."""
    arguments = ", ".join(f"{key}={value}" for key, value in weights.arguments.items())
    return _WEIGHTS_LINE.format(
        weights.name,
        "-" if weights.top1 is None else f"{weights.top1:.2f}",
        weights.image_size,
        f"{weights.crop_pct:.3g}",
        weights.num_classes or "none",
        weights.licence or "-",
        weights.source + (f" ({arguments})" if arguments else ""),
    )


def pretrained_json(weights: PretrainedWeights) -> str:
    """Returns all that is known of published weights, as one line of JSON."""
    return json.dumps(dataclasses.asdict(weights))
