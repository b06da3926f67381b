"""The most likely classes of images.

    python -m noah_jax.predict photo.jpg --checkpoint runs/quickstart
    python -m noah_jax.predict photos/ more/ --checkpoint runs/converted --top 3
    find photos -name '*.png' | python -m noah_jax.predict - --checkpoint runs/mine --json

A folder stands for all images in it, at any depth, and `-` for the paths on standard input, one a
line. Images are prepared as the checkpoint says, which is told on standard error; --mean, --std,
--resize, --crop and --interpolation replace it. The output is one line of text for
each image or, with --json, one JSON object a line with file, class, name and probability. The
probabilities add up to one; if the model was trained for several labels an image, each class has
its own.

The exit code is 0 if every image was classified. It is 1 if some images could not be read (they
are named on standard error, and the others are classified all the same) and after an error.
"""

import argparse
import sys

from noah_jax.cli import Parser, positive, program
from noah_jax.inference.flags import (
    add_batches,
    add_checkpoint,
    add_class_names,
    add_preprocessing,
    preprocessing_settings,
)
from noah_jax.paths import local_path


def _parser() -> Parser:
    parser = Parser("python -m noah_jax.predict", __doc__)
    add = parser.add_argument
    add(
        "paths",
        metavar="PATH",
        nargs="+",
        type=local_path,
        help="images, folders, or - for paths on stdin",
    )
    add_checkpoint(parser)
    add(
        "--top",
        type=positive,
        default=5,
        metavar="K",
        help="classes to print for each image; by default 5",
    )
    add_class_names(parser)
    add_batches(parser, 64)
    add_preprocessing(parser)
    add("--json", dest="as_json", action="store_true", help="print JSON lines")
    return parser


def _predict(arguments: argparse.Namespace) -> int:
    from noah_jax.predict.program import predict_all

    options = vars(arguments)
    settings = preprocessing_settings(options)
    all_images_were_read = predict_all(**options, settings=settings)
    return 0 if all_images_were_read else 1


main = program(_predict, _parser)

if __name__ == "__main__":
    sys.exit(main())
