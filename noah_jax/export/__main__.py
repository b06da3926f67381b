"""A trained model as one artifact that runs with JAX alone, without this package.

    python -m noah_jax.export --checkpoint runs/quickstart --output exported
    python -m noah_jax.export --checkpoint runs/mine/checkpoints/5000 --ema --output exported

DIR gets

    model.stablehlo        `jax.export`'s serialisation of images -> logits, weights included, for
                           CPU, TPU and CUDA and any number of images
    model.json             what goes in and comes out: preprocessing, classes, versions
    weights.safetensors    the weights by their paths here (`params/layer1/0/conv1/kernel`)
    README.md              the model card: provenance, metrics, configuration, how to run it

and is made whole or not at all. To run it: `pip install jax flatbuffers`, then

    f = jax.export.deserialize(pathlib.Path("DIR/model.stablehlo").read_bytes()).call
    logits = f(images)  # uint8 [batch, height, width, 3]; normalising is part of it

The exported program is run here before it is written, on two batches of different sizes, and must
give the model's logits. The exit code is 0, or 1 after an error.
"""

import argparse
import sys
from collections.abc import Sequence

from noah_jax.cli import Parser, run


def _parser() -> Parser:
    parser = Parser("python -m noah_jax.export", __doc__)
    add = parser.add_argument
    add("--checkpoint", metavar="PATH", required=True, help="a run's or a converted folder, ...")
    add("--ema", action="store_true", help="the moving average of the weights")
    add("--output", metavar="DIR", required=True, help="a new folder")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exports what the arguments say; returns the exit code."""
    return run(_export, _parser(), argv)


def _export(given: argparse.Namespace) -> int:
    from noah_jax.export.artifact import export

    export(given.checkpoint, given.output, ema=given.ema)
    return 0


if __name__ == "__main__":
    sys.exit(main())
