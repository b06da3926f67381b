"""Converts weights between PyTorch's files and folders that noah_jax loads.

    python -m noah_jax.convert SRC DST                find the model, convert, save
    python -m noah_jax.convert SRC DST --ema          convert the EMA weights, not the raw ones
    python -m noah_jax.convert SRC DST --dry-run      only say what would be done
    python -m noah_jax.convert --released NAME DST    download a checkpoint of the authors first
    python -m noah_jax.convert hf://USER/NAME DST     a repository of Hugging Face
    python -m noah_jax.convert --to-torch FOLDER OUT.safetensors

SRC is a checkpoint of the original's training programs, a state dict (`.pth`), weights of the
same architectures from torchvision, timm or Facebook, or a safetensors file; or where to download
one: hf://USER/NAME[@REVISION], https://.../NAME-CHECKSUM.pth. No code in it is run. DST is a new
folder, local or `gs://`, for `noah_jax.load_model`.

The file rarely tells how its training prepared images. `--set mean=0.5 std=0.5 resize=256 crop=224
interpolation=bicubic` does. What is not given comes from timm's `pretrained_cfg` (in the file, or
in `config.json` beside it), else it is what was published for the architecture. The folder keeps it
for evaluate, predict, explain, export and `load_model`. interpolation=nearest is PyTorch's,
nearest-exact Pillow's.

`--released` keeps the downloaded file and its SHA-256, and compares them at every use.

`--overwrite` replaces a local DST that this program wrote before, once the new one is complete.
If the program is killed at the moment of the change, the old folder lies beside DST as
`.DST.replaced-PID`, and the next run puts it back.

`--to-torch` writes the model of such a folder, or of a training run, as a state dict with the
original's names: `.safetensors`, or `.pth` if PyTorch is installed.

`python convert_torch_weights.py` takes the same arguments.
"""

import argparse
import ast
import re
import sys
from typing import Any

from noah_jax.cli import Parser, program
from noah_jax.errors import UsageError
from noah_jax.paths import local_path


def _setting(text: str) -> tuple[str, Any]:
    """Parses the `KEY=VALUE` of --set."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def _parser() -> Parser:
    parser = Parser("python -m noah_jax.convert", __doc__)
    add = parser.add_argument
    add(
        "source",
        metavar="SRC",
        type=local_path,
        help="a PyTorch file, local or hf://USER/NAME[@REVISION][/FILE] or"
        " https://.../NAME-CHECKSUM.pth; a name with --released; a folder with --to-torch",
    )
    add(
        "destination",
        metavar="DST",
        type=local_path,
        help="a new folder; a new file with --to-torch",
    )
    for flag, meaning in (
        ("--to-torch", "convert to PyTorch"),
        ("--released", "SRC is the name of a released checkpoint"),
        ("--ema", "convert the EMA weights, not the raw ones"),
        ("--dry-run", "say what would be done, write nothing"),
        ("--overwrite", "replace a DST that this program wrote"),
    ):
        add(flag, action="store_true", help=meaning)
    add("--model", metavar="NAME", help="registered name of the model; by default it is found")
    add(
        "--prefix",
        metavar="NAME",
        help="take the keys that begin with NAME., where a file holds several models",
    )
    add(
        "--head",
        choices=["fresh"],
        help="take the backbone alone, leave every other key out, and draw a fresh head: that of"
        " --model, else a linear one, with the num_classes of --set",
    )
    parser.add_several(
        "--set",
        lambda word: re.match("[a-z_.]+=", word) is not None,
        metavar="KEY=VALUE",
        type=_setting,
        default=[],
        help="an argument of create_model that overrides what the file tells, such as"
        " image_size=64, an option of its head by its key, such as head.csra.lam=0.2, or how images"
        " are prepared for the weights: mean, std, resize, crop, interpolation; several may follow",
    )
    downloads = "folder for the downloads of --released; by default ~/.cache/noah_jax/released"
    add("--cache", metavar="DIR", type=local_path, help=downloads)
    return parser


def _main(args: argparse.Namespace) -> int:
    if args.cache and not args.released:
        raise UsageError("--cache is for --released")
    if args.to_torch and (
        (args.model or args.ema or args.set or args.dry_run or args.released)
        or (args.prefix or args.head)
    ):
        raise UsageError(
            "--to-torch takes a folder, a file and --overwrite, none of the other options"
        )
    from noah_jax.convert.program import convert, convert_released, convert_to_torch

    if args.to_torch:
        convert_to_torch(args.source, args.destination, overwrite=args.overwrite)
        return 0
    options = dict(
        name=args.model,
        ema=args.ema,
        arguments=dict(args.set),
        prefix=args.prefix,
        fresh_head=args.head == "fresh",
        dry_run=args.dry_run,
        overwrite=args.overwrite,
    )
    if args.released:
        convert_released(args.source, args.destination, cache=args.cache, **options)
    else:
        convert(args.source, args.destination, **options)
    return 0


main = program(_main, _parser)

if __name__ == "__main__":
    sys.exit(main())
