"""Prints the table of models.

    python -m noah_jax.models
    python -m noah_jax.models 'noah_resnet*'

Parameters and multiply-adds (what papers call FLOPs) are of one image of the published size
and class count. Top-1 is the published ImageNet-1k accuracy, from the tables in the README
files of the original repository; a dash where there is no published model. N and r are the
head's: its blocks and the share of the channels that feeds the query.
"""

import argparse
import fractions
import sys

from noah_jax.models import create_model, list_models
from noah_jax.models.flops import multiply_adds
from noah_jax.models.published import published
from noah_jax.report import fail

SOURCE = "NOAH README"


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
    return _LINE.format(name, f"{millions:.3f}", f"{billions:.3f}", top1, source, head_num, ratio)


_LINE = "{:36} {:>12} {:>9} {:>6}  {:12} {:>2} {!s:>4}"


def main(argv: list[str] | None = None) -> int:
    """Prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m noah_jax.models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pattern", nargs="?", default="*", help="which names, shell-style")
    args = parser.parse_args(argv)
    names = list_models(args.pattern)
    if not names:
        return fail(f"no model matches {args.pattern!r}; there are {len(list_models())}")
    print(_LINE.format("model", "parameters/M", "FLOPs/G", "top-1", "source", "N", "r"))
    for name in names:
        print(row(name), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
