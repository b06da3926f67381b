"""Compiles the real train step for a machine that is not here: does it fit, what does it cost?

    python -m noah_jax.compile --config FILE[:VARIANT] --topology v5e:16x16 [--config.KEY=VALUE]
    python -m noah_jax.compile --all [--models 'noah_*'] --topology v5e:4x4,h100:8

It needs no accelerator, and of the data only the classes and their number; those of imagenet2012,
coco2014, coco2017 and voc2007 are known.
Every figure is per device. A batch that does not fit is compiled again, smaller, until one does.
The exit code is 0 if everything fits and 1 if something does not. Large models take minutes.
"""

import argparse
import sys

from noah_jax.cli import Parser, load_config, program
from noah_jax.errors import UsageError


def _parser() -> Parser:
    parser = Parser("python -m noah_jax.compile", __doc__)
    parser.add_config()
    parser.add_argument(
        "--topology",
        metavar="MACHINE,MACHINE...",
        help="machines: v4:2x2x4, v5p:2x2x4, v7x:2x2x4, v5e:16x16, v6e:16x16 (the chips along"
        " each axis; needs `pip install libtpu`),"
        " h100:8 (needs `pip install 'jax[cuda13]'`) or cpu:8",
    )
    for flag, meaning in (
        ("--all", "a table of all variants of the files in configs/"),
        ("--json", "one JSON object a line, for each configuration and machine; sizes in bytes"),
    ):
        parser.add_argument(flag, action="store_true", help=meaning)
    pattern = "with --all: only variants of this pattern, such as 'noah_*'"
    parser.add_argument("--models", default="*", metavar="PATTERN", help=pattern)
    return parser


def _compile(args: argparse.Namespace) -> int:
    if not args.topology:
        raise UsageError("--topology is needed, such as --topology v5e:16x16")
    if args.all and args.config:
        raise UsageError("--all takes all variants: give --config or --all")
    from noah_jax.compile.program import Form, all_variants, compile_and_print

    names = all_variants(args.models) if args.all else [args.config]
    form: Form = "json" if args.json else "table" if args.all else "text"
    configs = [load_config(args, name) for name in names]
    return 0 if compile_and_print(configs, args.topology.split(","), form) else 1


main = program(_compile, _parser)

if __name__ == "__main__":
    sys.exit(main())
