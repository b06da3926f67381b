"""The most likely classes of images.

    python -m noah_jax.predict photo.jpg --checkpoint runs/quickstart
    python -m noah_jax.predict photos/ more/ --checkpoint runs/converted --top 3
    find photos -name '*.png' | python -m noah_jax.predict - --checkpoint runs/mine --json

Folders stand for all the images in them, at any depth; `-` for the paths on stdin, a line each.
Images are prepared as in the training's own evaluation. --json prints one object a line, with
file, class, name and probability; otherwise a line of text for each image. Probabilities add up to
one; of a model trained for several labels an image each class has its own instead.

The exit code is 0 if every image was classified, 1 if some could not be read (each is named on
stderr, the others are classified all the same) and after any other error.
"""

import argparse
import sys
from collections.abc import Sequence

from noah_jax.cli import Parser, positive, run


def _parser() -> Parser:
    parser = Parser("python -m noah_jax.predict", __doc__)
    add = parser.add_argument
    add("paths", metavar="PATH", nargs="+", help="images, folders, or - for paths on stdin")
    add("--checkpoint", metavar="PATH", required=True, help="a run's or a converted folder, ...")
    add("--ema", action="store_true", help="the moving average of the weights")
    add("--top", type=positive, default=5, metavar="K", help="how many classes; 5")
    add("--class-names", metavar="FILE", help="a class's name a line, in the order of the labels")
    add("--batch", type=positive, default=64, metavar="N", help="images at a time; 64")
    add("--threads", type=positive, metavar="N", help="that decode; by default one a core")
    add("--json", action="store_true", help="JSON lines")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Classifies what the arguments say; returns the exit code."""
    return run(_predict, _parser(), argv)


def _predict(given: argparse.Namespace) -> int:
    from noah_jax.predict.program import predict_all

    return predict_all(given)


if __name__ == "__main__":
    sys.exit(main())
