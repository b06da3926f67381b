"""Prints the table of models.

    python -m noah_jax.models
    python -m noah_jax.models 'noah_resnet*'
    python -m noah_jax.models 'resnet*' --head csra
    python -m noah_jax.models resnet50 --heads
    python -m noah_jax.models 'deit_*' --heads linear noah csra

Parameters and multiply-adds (what papers call FLOPs) are those of one image of the published size
and number of classes. Top-1 is the published accuracy on ImageNet-1k, from the tables in the README
files of the original repository; a dash stands for models that nobody published. N is the number
of the head's blocks, r the fraction of the channels that feeds the query.

`--heads` lists what each head costs on a backbone, with its default options and the published
number of classes: the model's parameters and FLOPs, and the head's own share of them.
"""

import argparse
import sys

from noah_jax.cli import Parser, program
from noah_jax.console import say, working
from noah_jax.errors import UsageError, did_you_mean


def _parser() -> Parser:
    parser = Parser("python -m noah_jax.models", __doc__)
    parser.add_argument("pattern", nargs="?", default="*", help="which names, as in a shell")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--head",
        metavar="NAME",
        help="another head for every backbone, such as csra, with its"
        " published options; only names without noah_ are listed then",
    )
    chosen.add_argument(
        "--heads",
        nargs="*",
        metavar="NAME",
        help="list these heads on each backbone; all without a name",
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
    if given.heads is not None:
        _print_heads(list(dict.fromkeys(n.removeprefix(NOAH_PREFIX) for n in names)), given.heads)
        return 0
    say(HEADER)
    with working("counting", len(names), "models") as work:
        for name in names:
            say(row(name, given.head))
            work.advance()
    return 0


def _print_heads(backbones: list[str], heads: list[str]) -> None:
    from noah_jax.heads.registry import HEADS, check_head
    from noah_jax.models.table import HEADS_HEADER, head_rows

    for head in heads:
        check_head(head)
    say(HEADS_HEADER)
    with working("counting the heads of", len(backbones), "backbones") as work:
        for name in backbones:
            for line in head_rows(name, heads or list(HEADS)):
                say(line)
            work.advance()


main = program(_print, _parser)

if __name__ == "__main__":
    sys.exit(main())
