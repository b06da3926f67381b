"""The table of models that `python -m noah_jax.models` prints."""

import fractions

from noah_jax.models.create import create_model
from noah_jax.models.flops import multiply_adds
from noah_jax.models.published import published

SOURCE = "NOAH README"
LINE = "{:36} {:>12} {:>9} {:>6}  {:12} {:>2} {!s:>4}"
HEADER = LINE.format("model", "parameters/M", "FLOPs/G", "top-1", "source", "N", "r")


def row(name: str) -> str:
    """One line of the table."""
    model = create_model(name)
    known = published().get(name)
    top1, source = (f"{known.top1:.2f}", SOURCE) if known else ("-", "-")
    head_num = ratio = "-"
    if model.arguments["head"] == "noah":
        head_num = model.arguments["head_num"]
        ratio = fractions.Fraction(model.arguments["key_ratio"]).limit_denominator(64)
    millions = model.num_params / 1e6
    billions = multiply_adds(model) / 1e9
    return LINE.format(name, f"{millions:.3f}", f"{billions:.3f}", top1, source, head_num, ratio)
