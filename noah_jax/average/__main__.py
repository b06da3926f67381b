"""Averages the weights of several checkpoints of one architecture into one model.

    python -m noah_jax.average runs/mine/checkpoints --output runs/mean
    python -m noah_jax.average runs/a runs/b runs/c --output runs/soup --greedy

Checkpoints are what `python -m noah_jax.evaluate` takes. They must have the same architecture,
classes and preprocessing, and are worth averaging if they lie near each other: the last checkpoints
of one run, or several runs that fine-tuned the same weights (model soups, Wortsman et al., 2022).

Without --greedy all of them count alike. With it, they are evaluated one by one, the best goes
first, and each further one stays only if the average is then at least as good on the evaluation
images. These should not be the images that the result is reported on; --dataset and --split choose
others.

The average is written as a folder that every program reads.
"""

import argparse
import sys

from noah_jax.cli import Parser, program
from noah_jax.errors import UsageError
from noah_jax.inference.flags import add_batches, add_ema
from noah_jax.paths import local_path


def _parser() -> Parser:
    parser = Parser("python -m noah_jax.average", __doc__)
    add = parser.add_argument
    add("checkpoints", nargs="+", type=local_path, metavar="CHECKPOINT", help="what to average")
    add("--output", required=True, type=local_path, metavar="DIR", help="the folder to write")
    add("--overwrite", action="store_true", help="replace a DIR that this program wrote")
    add_ema(parser)
    add(
        "--greedy",
        action="store_true",
        help="leave out the checkpoints that make the average worse on evaluation images",
    )
    add(
        "--dataset",
        metavar="NAME|folder:PATH|...",
        help="with --greedy: the images to decide on; by default those that the first checkpoint's"
        " training was evaluated on",
    )
    add("--data-dir", metavar="DIR", type=local_path, help="where TFDS keeps its prepared datasets")
    add("--split", help="the split to decide on; by default the one for evaluation")
    add_batches(parser, 128)
    return parser


def _average(arguments: argparse.Namespace) -> int:
    if not arguments.greedy and (arguments.dataset or arguments.data_dir or arguments.split):
        raise UsageError("--dataset, --data-dir and --split are for --greedy, which needs images")
    from noah_jax.average.program import average
    from noah_jax.evaluation.dataset import DatasetChoice

    choice = DatasetChoice(
        dataset=arguments.dataset, data_dir=arguments.data_dir, split=arguments.split
    )
    average(
        arguments.checkpoints,
        arguments.output,
        ema=arguments.ema,
        overwrite=arguments.overwrite,
        decide_on=choice if arguments.greedy else None,
        batch_size=arguments.batch_size,
        num_threads=arguments.num_threads,
    )
    return 0


main = program(_average, _parser)

if __name__ == "__main__":
    sys.exit(main())
