"""Where a model's head sees classes in images, and what each position contributes to the logits.

    python -m noah_jax.explain --checkpoint runs/quickstart --image photo.png
    python -m noah_jax.explain --checkpoint runs/mine --image a.jpg b.jpg --classes tench 217 top3
    python -m noah_jax.explain --checkpoint runs/a --checkpoint runs/b --image photos/

This is the head's own attention, not an approximation: the contributions of all positions (the
attention times the value) plus the bias add up to the logit. The folder DIR (--output,
`explanation` by default) gets index.html, a single file without external parts, which shows the
contribution of the position under the mouse pointer or the arrow keys, and a PNG for each image,
class and checkpoint. Every map has a colour bar, and all classes and checkpoints of an image share
its scale. NOAH and csra have contributions; other heads that attend to positions, such as map, show
their attention alone; those that do not, such as linear, are refused.

The exit code is 0 if every image is explained. It is 1 if some images could not be read (they are
named on standard error) and after an error.
"""

import argparse
import sys

from noah_jax.cli import Parser, program
from noah_jax.inference.flags import (
    CHECKPOINT_HELP,
    add_class_names,
    add_ema,
    add_preprocessing,
    preprocessing_settings,
)
from noah_jax.paths import local_path


def _parser() -> Parser:
    parser = Parser("python -m noah_jax.explain", __doc__)
    add = parser.add_argument
    add(
        "--checkpoint",
        dest="checkpoints",
        metavar="PATH",
        type=local_path,
        action="append",
        required=True,
        help=f"{CHECKPOINT_HELP}; give it twice to compare two models",
    )
    add_ema(parser)
    add(
        "--image",
        dest="images",
        metavar="FILE",
        type=local_path,
        nargs="+",
        required=True,
        help="images, or folders of images",
    )
    add(
        "--classes",
        metavar="NAME|INDEX|topK",
        nargs="+",
        default=["top3"],
        help="names or indices of classes (name:1 or index:1 where both exist); top3, the default,"
        " stands for the three most likely classes of the first checkpoint",
    )
    add_class_names(parser)
    add_preprocessing(parser)
    add(
        "--output",
        metavar="DIR",
        type=local_path,
        default="explanation",
        help="the folder for the results; by default `explanation`",
    )
    add(
        "--overview",
        metavar="FILE.png",
        type=local_path,
        help="also write one picture of all images (at most 20) and their classes, with the blocks"
        " of the head merged",
    )
    add(
        "--cells",
        action="store_true",
        help="draw each position of the map as a rectangle, not a smooth surface; the page can"
        " switch between the two",
    )
    return parser


def _explain(arguments: argparse.Namespace) -> int:
    from noah_jax.explain.program import explain_all

    options = vars(arguments)
    settings = preprocessing_settings(options)
    return 0 if explain_all(**options, settings=settings) else 1


main = program(_explain, _parser)

if __name__ == "__main__":
    sys.exit(main())
