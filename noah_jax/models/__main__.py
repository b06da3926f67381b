"""Prints the table of models.

    python -m noah_jax.models
    python -m noah_jax.models 'noah_resnet*'
    python -m noah_jax.models 'resnet*' --head csra
    python -m noah_jax.models resnet50 --heads
    python -m noah_jax.models 'resnet*' --pretrained
    python -m noah_jax.models 'deit_*' --heads linear noah csra

Parameters and multiply-adds (what papers call FLOPs) are those of one image of the published size
and number of classes. Top-1 is the published accuracy on ImageNet-1k, from the tables in the README
files of the original repository; a dash stands for models that nobody published. N is the number
of the head's blocks, r the fraction of the channels that feeds the query.

`--heads` lists what each head costs on a backbone, with its default options and the published
number of classes: the model's parameters and FLOPs, and the head's own share of them.

`--pretrained` lists the published weights that fit the architectures here, by the name of their
checkpoint, which every program takes: timm's (hf://timm/...), torchvision's (https://...) and those
that NOAH's authors released (released://...), with licence, classes and published top-1. Top-1 was
measured with images of that size, and that part of the resized image; it is timm's
results-imagenet.csv, torchvision's enum of weights, or the README files of the original. The first
one of a name is what `create_model(name, pretrained=True)` takes.
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
    chosen.add_argument(
        "--pretrained", action="store_true", help="list the published weights of each model"
    )
    parser.add_argument(
        "--json", dest="as_json", action="store_true", help="one JSON line for each of --pretrained"
    )
    return parser


def _print(given: argparse.Namespace) -> int:
    from noah_jax.heads.registry import check_head
    from noah_jax.models.registry import NOAH_PREFIX, list_models
    from noah_jax.models.table import HEADER, row

    if given.as_json and not given.pretrained:
        raise UsageError("--json is for --pretrained")
    names = list_models(given.pattern)
    if given.head is not None:
        check_head(given.head)
        names = [name for name in names if not name.startswith(NOAH_PREFIX)]
    if not names:
        near = did_you_mean(given.pattern, list_models())
        raise UsageError(f"no model matches {given.pattern!r} of {len(list_models())}{near}")
    if given.pretrained:
        return _print_pretrained(names, given.as_json)
    if given.heads is not None:
        _print_heads(list(dict.fromkeys(n.removeprefix(NOAH_PREFIX) for n in names)), given.heads)
        return 0
    say(HEADER)
    with working("counting", len(names), "models") as work:
        for name in names:
            say(row(name, given.head))
            work.advance()
    return 0


def _print_pretrained(names: list[str], as_json: bool) -> int:
    from noah_jax.models.pretrained import pretrained_weights
    from noah_jax.models.table import PRETRAINED_HEADER, pretrained_json, pretrained_row

    rows = [row for name in names for row in pretrained_weights() if row.name == name]
    if not rows:
        raise UsageError(f"nobody published weights of {', '.join(names[:5])} that are known here")
    if not as_json:
        say(PRETRAINED_HEADER)
    for row in rows:
        say(pretrained_json(row) if as_json else pretrained_row(row))
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
