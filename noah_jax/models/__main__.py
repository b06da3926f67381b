"""Prints the table of models.

    python -m noah_jax.models
    python -m noah_jax.models 'noah_resnet*'
    python -m noah_jax.models 'resnet*' --head csra

Parameters and multiply-adds (what papers call FLOPs) are those of one image of the published size
and number of classes. Top-1 is the published accuracy on ImageNet-1k, from the tables in the README
files of the original repository; a dash stands for models that nobody published. N is the number
of the head's blocks, r the fraction of the channels that feeds the query.
"""

import argparse
import sys

from noah_jax.cli import Parser, program
from noah_jax.console import say, working
from noah_jax.errors import UsageError, did_you_mean


def _parser() -> Parser:
    parser = Parser("python -m noah_jax.models", __doc__)
    parser.add_argument("pattern", nargs="?", default="*", help="which names, as in a shell")
    parser.add_argument(
        "--head",
        metavar="NAME",
        help="another head for every backbone, such as csra, with its"
        " published options; only names without noah_ are listed then",
    )
    return parser


def _print(given: argparse.Namespace) -> int:
    from noah_jax.heads.registry import check_head
    from noah_jax.models.registry import NOAH_PREFIX, list_models
    from noah_jax.models.table import HEADER, row

    names = list_models(given.pattern)
    if given.head is not None:
        check_head(given.head)
        names = [name for name in names if not name.startswith(NOAH_PREFIX)]
    if not names:
        near = did_you_mean(given.pattern, list_models())
        raise UsageError(f"no model matches {given.pattern!r} of {len(list_models())}{near}")
    say(HEADER)
    with working("counting", len(names), "models") as work:
        for name in names:
            say(row(name, given.head))
            work.advance()
    return 0


main = program(_print, _parser)

if __name__ == "__main__":
    sys.exit(main())
