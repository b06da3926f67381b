"""Formats the table of models that `python -m noah_jax.models` prints."""

import fractions

from noah_jax.models.create import create_model
from noah_jax.models.flops import multiply_adds
from noah_jax.models.published import published

_SOURCE = "NOAH README"
_LINE = "{:36} {:>12} {:>9} {:>6}  {:12} {:>2} {!s:>4}"
HEADER = _LINE.format("model", "parameters/M", "FLOPs/G", "top-1", "source", "N", "r")


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
