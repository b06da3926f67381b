"""Compares heads and settings: the same data in the same order, several seeds, intervals.

    python -m noah_jax.compare
    python -m noah_jax.compare --config quickstart.py --seeds 0 1 2 --heads linear noah csra map
    python -m noah_jax.compare --config quickstart.py --seeds 0 1 \\
        --sweep config.model.head_num=1,2,4 config.model.key_ratio=0.125,0.25
    python -m noah_jax.compare --config deit.py:deit_tiny_patch16_224 --parallel 8

Trains every configuration with every head, setting and seed. Each training is a process of its own
(`python -m noah_jax.train`) with a folder of its own in WORKDIR. With the same seed, all of them
see the same images in the same order with the same augmentation, so their differences are paired.

Prints a table, and writes it to WORKDIR as Markdown, CSV and JSON, together with the training
curves and a figure of accuracy against cost. The table has the mean and standard deviation over the
seeds, parameters, FLOPs (multiply-adds for one image), the milliseconds of a training step and, for
all but the first, the mean difference from the first with its 95 % confidence interval (Student's
t). With more than two contenders it has p-values corrected by Holm.

A configuration is FILE or FILE:VARIANT. The heads linear and noah are its variants `linear` and
`noah`, or VARIANT and `noah_VARIANT`; any other is the linear one with --config.model.head=NAME.
The default is a small ResNet, DeiT and Mixer on the embedded sample.

--sweep takes every combination of the values of its keys, and compares with the first. A head that
does not have a key is trained without it. `--config.KEY=VALUE` sets a key in every training.

The same command continues where an earlier one stopped. If a training fails, the others go on.
"""

import argparse
import sys

from noah_jax.cli import Parser, positive, program
from noah_jax.errors import UsageError
from noah_jax.paths import local_path

DEFAULT_CONFIGS = ("configs/quickstart.py", "configs/sample.py:deit", "configs/sample.py:mixer")


def _parser() -> Parser:
    parser = Parser("python -m noah_jax.compare", __doc__)
    parser.add_config(
        nargs="+",
        default=None,
        help=f"the configurations to train; by default {' '.join(DEFAULT_CONFIGS)}",
    )
    add = parser.add_argument
    add(
        "--heads",
        nargs="+",
        metavar="HEAD",
        help="the heads to compare, each with the first; by default linear noah, and"
        " with --sweep the head that the configuration has",
    )
    add(
        "--sweep",
        nargs="+",
        default=[],
        metavar="config.KEY=VALUE,VALUE",
        help="the keys to vary, with all their values",
    )
    add(
        "--seeds",
        nargs="+",
        type=int,
        default=[0, 1, 2],
        metavar="N",
        help="seeds; by default 0 1 2",
    )
    add(
        "--parallel",
        metavar="N",
        type=positive,
        default=1,
        help="how many trainings run at once, each with its own GPUs or TPU chip, or its share of"
        " the processor cores; by default one, which has all devices",
    )
    add(
        "--workdir",
        metavar="DIR",
        type=local_path,
        default="runs/compare",
        help="the folder for all results; by default runs/compare",
    )
    return parser


def _compare(arguments: argparse.Namespace) -> int:
    several = {"--config": arguments.config, "--heads": arguments.heads, "--seeds": arguments.seeds}
    for flag, values in several.items():
        if values is not None and len(set(values)) < len(values):
            raise UsageError(f"{flag} repeats a value: {' '.join(map(str, values))}")
    from noah_jax.compare.sweep import parse_sweep

    sweep = parse_sweep(arguments.sweep, arguments.overrides)
    heads = arguments.heads
    if heads is None and (not sweep or arguments.config is None):
        heads = ["noah"] if sweep else ["linear", "noah"]
    from noah_jax.compare.program import compare
    from noah_jax.compare.tables import format_table

    outcome = compare(
        arguments.config or DEFAULT_CONFIGS,
        heads,
        arguments.seeds,
        arguments.workdir,
        arguments.overrides,
        sweep=sweep,
        parallel=arguments.parallel,
    )
    if outcome.rows:
        print(format_table(outcome.rows))
        print(
            f"written to {arguments.workdir}: compare.md, compare.csv, compare.json, curves.png,"
            " cost.png",
            file=sys.stderr,
        )
    return outcome.exit_code


main = program(_compare, _parser)

if __name__ == "__main__":
    sys.exit(main())
