"""Compares heads fairly: the same data in the same order, several seeds, confidence intervals.

    python -m noah_jax.compare
    python -m noah_jax.compare --config quickstart.py --seeds 0 1 2 --heads linear noah
    python -m noah_jax.compare --config deit.py:deit_tiny_patch16_224 --workdir gs://...

Trains every configuration with every head and seed. Each training is a process of its own
(`python -m noah_jax.train`) with a folder of its own in WORKDIR. With the same seed, all heads see
the same images in the same order with the same augmentation, so their differences are paired.

Prints a table, and writes it to WORKDIR together with the training curves. The table has the mean
and standard deviation over the seeds and, for each head but the first, the mean difference from
the first head with its 95 % confidence interval (Student's t). The same command continues where an
earlier one stopped. `--config.KEY=VALUE` sets a key in every training.

A configuration is FILE or FILE:VARIANT. Its heads are the variants `linear` and `noah`, or VARIANT
and `noah_VARIANT`. The default is a small ResNet, DeiT and Mixer on the embedded sample.
"""

import argparse
import subprocess
import sys

from noah_jax.cli import Parser, program
from noah_jax.compare.variants import DEFAULT_CONFIGS, HEADS
from noah_jax.console import fail
from noah_jax.errors import UsageError
from noah_jax.paths import local_path


def _parser() -> Parser:
    parser = Parser("python -m noah_jax.compare", __doc__)
    parser.add_config(
        nargs="+",
        default=list(DEFAULT_CONFIGS),
        help=f"the configurations to train; by default {' '.join(DEFAULT_CONFIGS)}",
    )
    add = parser.add_argument
    add(
        "--heads",
        nargs="+",
        default=list(HEADS),
        choices=HEADS,
        help="the heads to compare; by default noah with linear, the first of them",
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
        "--workdir",
        metavar="DIR",
        type=local_path,
        default="runs/compare",
        help="the folder for all results; by default runs/compare",
    )
    return parser


def _compare(arguments: argparse.Namespace) -> int:
    for flag, values in (("--heads", arguments.heads), ("--seeds", arguments.seeds)):
        if len(set(values)) < len(values):
            raise UsageError(f"{flag} repeats a value: {' '.join(map(str, values))}")
    from noah_jax.compare.program import compare
    from noah_jax.compare.summary import format_table
    from noah_jax.interrupts import INTERRUPTED, RESTARTABLE

    try:
        rows = compare(
            arguments.config,
            arguments.heads,
            arguments.seeds,
            arguments.workdir,
            arguments.overrides,
        )
    except subprocess.CalledProcessError as error:
        if error.returncode in (RESTARTABLE, INTERRUPTED):
            fail("a training was stopped; the same command goes on from there")
            return int(error.returncode)
        killed = ", killed; the same command goes on from there" if error.returncode < 0 else ""
        return fail(f"a training failed, see above (exit code {error.returncode}{killed})")
    print(format_table(rows, arguments.heads))
    print(f"written to {arguments.workdir}: compare.json, compare.md, curves.png", file=sys.stderr)
    return 0


main = program(_compare, _parser)

if __name__ == "__main__":
    sys.exit(main())
