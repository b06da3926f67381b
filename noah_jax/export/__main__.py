"""A trained model as one artifact that runs with JAX alone, without this package.

    python -m noah_jax.export --checkpoint runs/quickstart --output exported
    python -m noah_jax.export --checkpoint runs/mine/checkpoints/5000 --ema --output exported

The folder DIR gets

    model.stablehlo        the function from images to logits as `jax.export` serialises it, with
                           the weights, for CPU, TPU and CUDA and any number of images
    model.json             its input and output: preprocessing, classes, versions
    weights.safetensors    the weights by their paths in this package
                           (`params/layer1/0/conv1/kernel`)
    README.md              the model card: provenance, metrics, configuration, how to run it

and appears whole or not at all. To run it: `pip install jax flatbuffers`, then

    f = jax.export.deserialize(pathlib.Path("DIR/model.stablehlo").read_bytes()).call
    logits = f(images)  # uint8 [batch, height, width, 3]; it normalises them itself

Before it is written, the exported program is run here on two batches of different sizes, and its
logits must agree with the model's. The exit code is 0, or 1 after an error.
"""

import argparse
import sys

from noah_jax.cli import Parser, program
from noah_jax.inference.flags import (
    add_checkpoint,
    add_preprocessing,
    preprocessing_settings,
)
from noah_jax.paths import local_path


def _parser() -> Parser:
    parser = Parser("python -m noah_jax.export", __doc__)
    add_checkpoint(parser)
    add_preprocessing(parser)
    parser.add_argument(
        "--output", metavar="DIR", type=local_path, required=True, help="a new or empty folder"
    )
    return parser


def _export(arguments: argparse.Namespace) -> int:
    from noah_jax.export.program import export

    settings = preprocessing_settings(vars(arguments))
    export(arguments.checkpoint, arguments.output, ema=arguments.ema, settings=settings)
    return 0


main = program(_export, _parser)

if __name__ == "__main__":
    sys.exit(main())
