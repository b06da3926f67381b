"""Where the NOAH head sees classes in images, and what each position contributes to the logits.

    python -m noah_jax.explain --checkpoint runs/quickstart --image photo.png
    python -m noah_jax.explain --checkpoint runs/mine --image a.jpg b.jpg --classes tench 217 top3
    python -m noah_jax.explain --checkpoint runs/a --checkpoint runs/b --image photos/

This is the head's own attention, no approximation of it: the contributions of all positions (the
attention times the value) and the bias sum up to the logit. DIR (--output, `explanation` by
default) gets index.html, which is one file without any outside parts, with every position's
contribution under the pointer, and a PNG for each image, class and checkpoint. Two checkpoints
stand side by side on the same colour scale. Only models with the NOAH head have such an attention.

The exit code is 0 if every image is explained, 1 if some could not be read (each is named on
stderr) and after any other error.
"""

import argparse
import sys
from collections.abc import Sequence

from noah_jax.cli import Parser, run


def _parser() -> Parser:
    parser = Parser("python -m noah_jax.explain", __doc__)
    add = parser.add_argument
    add(
        "--checkpoint",
        metavar="PATH",
        action="append",
        required=True,
        help="a run's or a converted folder, ...; give it twice to compare two",
    )
    add("--ema", action="store_true", help="the moving average of the weights")
    add("--image", metavar="FILE", nargs="+", required=True, help="images, or folders of them")
    add(
        "--classes",
        metavar="NAME|ID|topK",
        nargs="+",
        default=["top3"],
        help="names or numbers; top3 are the three most likely ones of the first checkpoint",
    )
    add("--class-names", metavar="FILE", help="a class's name a line, in the order of the labels")
    add("--output", metavar="DIR", default="explanation", help="made if need be; `explanation`")
    add(
        "--overview",
        metavar="FILE.png",
        help="also write one picture of all images (up to 20) and their classes, blocks merged",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Explains what the arguments say; returns the exit code."""
    return run(_explain, _parser(), argv)


def _explain(given: argparse.Namespace) -> int:
    from noah_jax.explain.program import explain_all

    return explain_all(given)


if __name__ == "__main__":
    sys.exit(main())
