"""Prints the table of models.

    python -m noah_jax.models
    python -m noah_jax.models 'noah_resnet*'

Parameters and multiply-adds (what papers call FLOPs) are of one image of the published size
and class count. Top-1 is the published ImageNet-1k accuracy, from the tables in the README
files of the original repository; a dash where there is no published model. N and r are the
head's: its blocks and the share of the channels that feeds the query.
"""

import argparse
import sys

from noah_jax.cli import Parser, run
from noah_jax.errors import UsageError


def main(argv: list[str] | None = None) -> int:
    """Prints the table; returns the exit code."""
    parser = Parser("python -m noah_jax.models", __doc__)
    parser.add_argument("pattern", nargs="?", default="*", help="which names, shell-style")
    return run(_print, parser, argv)


def _print(args: argparse.Namespace) -> int:
    from noah_jax.models.registry import list_models
    from noah_jax.models.table import HEADER, row

    names = list_models(args.pattern)
    if not names:
        raise UsageError(f"no model matches {args.pattern!r}; there are {len(list_models())}")
    print(HEADER)
    for name in names:
        print(row(name), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
