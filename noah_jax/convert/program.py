"""The program that takes weights from PyTorch's files into folders of this project, and out.

    python convert_torch_weights.py SRC DST                find the model, convert, save
    python convert_torch_weights.py SRC DST --ema          the EMA weights in place of the raw
    python convert_torch_weights.py SRC DST --dry-run      only say what would be done
    python convert_torch_weights.py --released NAME DST    download what the authors released
    python convert_torch_weights.py --to-torch FOLDER OUT.safetensors

SRC is a checkpoint of the original's training programs, a state dict (`.pth`), weights of the
same architectures by torchvision, timm or Facebook, or a safetensors file. Nothing in it is
unpickled. DST is a new folder, local or `gs://`, for `noah_jax.load_model`, the training
program's `--workdir` without its records. `--released` keeps the downloaded file with its
SHA-256, which it is held against at every use. `--overwrite` replaces a DST that this program
wrote before, once the new one is whole (killed at the moment of the change, the old one is
beside it as `.DST.replaced-PID`, and the next run puts it back). `--to-torch` writes the state
dict, by the original's names, of such a folder or of a training run (`.pth` where PyTorch is
installed).
"""

import argparse
import ast
import functools
from collections.abc import Sequence
from typing import Any

from noah_jax.cli import Parser, run
from noah_jax.errors import UsageError


def _setting(text: str) -> tuple[str, Any]:
    """`key=value` of --set."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"KEY=VALUE expected, got {text!r}")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def main(argv: Sequence[str] | None = None) -> int:
    """Converts what the arguments say; returns the exit code."""
    parser = Parser("python convert_torch_weights.py", __doc__)
    parser.add_argument(
        "source",
        metavar="SRC",
        help="a PyTorch file; a name with --released; a folder with --to-torch",
    )
    parser.add_argument("destination", metavar="DST", help="a new folder; a file with --to-torch")
    parser.add_argument("--to-torch", action="store_true", help="from here to PyTorch")
    parser.add_argument("--model", metavar="NAME", help="registered name, if not to be found")
    parser.add_argument("--ema", action="store_true", help="take the EMA weights, not the raw ones")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        type=_setting,
        action="append",
        default=[],
        help="an argument of create_model over what the file tells, such as image_size=64",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a DST that this program wrote"
    )
    parser.add_argument(
        "--released", action="store_true", help="SRC is the name of a released checkpoint"
    )
    parser.add_argument(
        "--cache",
        metavar="DIR",
        help="where --released keeps downloads, ~/.cache/noah_jax/released",
    )
    return run(functools.partial(_convert, parser), parser, argv)


def _convert(parser: Parser, args: argparse.Namespace) -> int:
    if args.cache and not args.released:
        parser.error("--cache is for --released")
    if args.to_torch and (args.model or args.ema or args.set or args.dry_run or args.released):
        parser.error("--to-torch takes a folder, a file and --overwrite, none of the other options")
    from noah_jax.convert.convert import convert, export
    from noah_jax.pytorch.released import fetch
    from noah_jax.runs.destination import free

    if args.to_torch:
        export(args.source, args.destination, overwrite=args.overwrite)
        return 0
    source = args.source
    if args.released:
        # Before a download that may take long.
        free(args.destination, folder=True, overwrite=args.overwrite)
        source = fetch(args.source, cache=args.cache)
    try:
        convert(
            source,
            args.destination,
            name=args.model,
            hint=args.source if args.released else None,
            ema=args.ema,
            arguments=dict(args.set),
            dry_run=args.dry_run,
            overwrite=args.overwrite,
        )
    except TypeError as error:  # a value of --set is of another kind
        raise UsageError(error) from error
    return 0
