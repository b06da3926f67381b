"""Finds the fastest block sizes of the NOAH head's kernels on this machine's own GPU.

    python -m noah_jax.autotune --models noah_resnet50,noah_deit_tiny_patch16_224 --batch 128

tries block sizes on the head of each model: those whose logits and gradients agree with the
definition are timed, forward and backward, in turns. The fastest are stored beside the compilation
cache, for this kind of GPU, this version of JAX and this shape of a head; "auto" takes them from
then on. BATCH is the number of images on one GPU.
"""

import argparse
import sys

from noah_jax.cli import Parser, positive, program

_MODELS = "noah_resnet50,noah_mobilenetv2_100,noah_deit_tiny_patch16_224,noah_deit_base_patch16_224"


def _names(text: str) -> list[str]:
    return text.split(",")


def _parser() -> Parser:
    parser = Parser("python -m noah_jax.autotune", __doc__)
    add = parser.add_argument
    add(
        "--models",
        default=_names(_MODELS),
        type=_names,
        metavar="NAME,NAME...",
        help=f"registered models with the NOAH head ({_MODELS})",
    )
    add("--batch", default=128, type=positive, help="images on one GPU (%(default)s)")
    add(
        "--dtype",
        default="bfloat16",
        choices=("bfloat16", "float16", "float32"),
        help="dtype of the features (%(default)s)",
    )
    add("--rounds", default=7, type=positive, help="measurements of each candidate (%(default)s)")
    return parser


def _main(args: argparse.Namespace) -> int:
    from noah_jax.autotune.program import autotune

    autotune(args.models, batch=args.batch, dtype=args.dtype, rounds=args.rounds)
    return 0


main = program(_main, _parser)

if __name__ == "__main__":
    sys.exit(main())
