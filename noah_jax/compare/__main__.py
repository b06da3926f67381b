"""Compares heads honestly: the same data in the same order, several seeds, intervals.

    python -m noah_jax.compare
    python -m noah_jax.compare --config configs/quickstart.py --seeds 0 1 2 --heads linear noah
    python -m noah_jax.compare --config configs/deit.py:deit_tiny_patch16_224 --workdir gs://...

Trains every configuration with every head and seed, each by `python -m noah_jax.train` in a
process of its own, in a folder of WORKDIR. For a seed the heads see the same images in the same
order with the same augmentation, so their difference is paired. Prints, and writes to WORKDIR,
a table of means and standard deviations over the seeds and of the paired differences from the
first head with their 95 % intervals (Student's t), and draws the curves. Started again, it goes
on where it was. Further --config.KEY=VALUE go to every training.

A configuration is FILE or FILE:VARIANT; its heads are the variants `linear` and `noah`, or
VARIANT and `noah_VARIANT`. By default: a small ResNet, DeiT and Mixer on the embedded sample.
"""

import argparse
import functools
import subprocess
import sys

from noah_jax.cli import Parser, run
from noah_jax.compare.program import DEFAULT_CONFIGS, HEADS, compare, table
from noah_jax.console import fail
from noah_jax.errors import UsageError


def _parser() -> Parser:
    parser = Parser("python -m noah_jax.compare", __doc__)
    parser.add_argument(
        "--config", nargs="+", default=list(DEFAULT_CONFIGS), metavar="FILE[:VARIANT]"
    )
    parser.add_argument("--heads", nargs="+", default=list(HEADS), choices=HEADS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workdir", default="runs/compare")
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    return parser


def main(argv: list[str]) -> int:
    """Compares what the command line says; returns the exit code."""
    overrides = [word for word in argv[1:] if word.startswith("--config.")]
    others = [word for word in argv[1:] if word not in overrides]
    return run(functools.partial(_compare, overrides), _parser(), others)


def _compare(overrides: list[str], given: argparse.Namespace) -> int:
    if given.rest:
        raise UsageError(f"unexpected argument {given.rest[0]!r}; see --help")
    for what, values in (("--heads", given.heads), ("--seeds", given.seeds)):
        if len(set(values)) < len(values):
            raise UsageError(f"{what} names one twice: {' '.join(map(str, values))}")
    try:
        rows = compare(given.config, given.heads, given.seeds, given.workdir, overrides)
    except subprocess.CalledProcessError as error:
        from noah_jax.train.watchdog import RESTARTABLE

        fail(f"a training failed (exit code {error.returncode}); the same command goes on there")
        return RESTARTABLE if error.returncode == RESTARTABLE else 1
    print(table(rows, given.heads))
    print(f"written to {given.workdir}: compare.json, compare.md, curves.png", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
