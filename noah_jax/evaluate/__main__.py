"""Accuracy and loss of trained models over every image of a dataset, each counted once.

    python -m noah_jax.evaluate --checkpoint runs/quickstart
    python -m noah_jax.evaluate --checkpoint runs/quickstart/checkpoints --report report
    python -m noah_jax.evaluate --checkpoint runs/converted runs/mine --dataset folder:imagenet
    python -m noah_jax.evaluate --checkpoint runs/converted --dataset folder:imagenetv2 \\
        --labels imagenetv2.csv
    python -m noah_jax.evaluate --checkpoint runs/converted --dataset imagenet2012 \\
        --real-labels real.json

A checkpoint is a training run's folder (its newest checkpoint), RUN/checkpoints/STEP,
RUN/checkpoints (all of them, a row each), a converted folder, a PyTorch file, or a folder of such
folders. Images are prepared as the training's own evaluation does it. All devices of the process
share the work. The exit code is 0, or 1 after an error; images that cannot be decoded are named
and left out.

Models trained for several labels an image (config.loss sigmoid or asymmetric) are measured by mean
average precision (mAP; also as VOC has it since 2010, and as in VOC 2007) and by the F1 over the
classes (CF1) and over all decisions (OF1).
"""

import argparse
import sys
from collections.abc import Sequence

from noah_jax.cli import Parser, positive, run


def _parser() -> Parser:
    parser = Parser("python -m noah_jax.evaluate", __doc__)
    add = parser.add_argument
    add("--checkpoint", metavar="PATH", nargs="+", required=True, help="what to evaluate")
    add("--ema", action="store_true", help="the moving average of the weights")
    add(
        "--dataset",
        metavar="NAME|folder:PATH|csv:PATH",
        help="a TFDS set, PATH/val/CLASS/image or PATH/CLASS/image, or PATH/val.csv, for several"
        " labels an image; by default the one of the checkpoint's own training",
    )
    add("--data-dir", metavar="DIR", help="where TFDS keeps its prepared data")
    add("--split", help="by default the first that exists of validation, val and test")
    add(
        "--labels",
        metavar="FILE",
        help="CSV lines `file,label` (a class's number or name) in place of the dataset's labels;"
        " images that it does not name are left out",
    )
    add(
        "--real-labels",
        metavar="FILE",
        help="ImageNet-ReaL's JSON: for every image in order of file names the labels that are"
        " right; adds its top-1 over the images that have any",
    )
    add("--batch", type=positive, default=None, metavar="N", help="images at a time")
    add("--threads", type=positive, metavar="N", help="that decode; by default one a core")
    add(
        "--report",
        metavar="DIR",
        help="write accuracy by class and the confusion matrix: report.json, classes.csv,"
        " confusion.csv and confusion.png (with several labels average precision by class and no"
        " confusion); in a folder each if there are several checkpoints",
    )
    add("--json", action="store_true", help="one JSON object a line in place of the table")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates what the arguments say; returns the exit code."""
    return run(_evaluate, _parser(), argv)


def _evaluate(given: argparse.Namespace) -> int:
    from noah_jax.evaluate.program import evaluate_all

    evaluate_all(given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
