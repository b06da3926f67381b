"""A trained model in forms that others use: by JAX alone, PyTorch and timm, ONNX, on the hub.

    python -m noah_jax.export --checkpoint runs/quickstart --output exported
    python -m noah_jax.export --checkpoint runs/quickstart --hub out
    python -m noah_jax.export --checkpoint runs/quickstart --onnx model.onnx
    python -m noah_jax.export --checkpoint runs/mine/checkpoints/5000 --ema --push me/birds

`--output DIR` writes one artifact that runs with JAX alone, without this package:

    model.stablehlo        the function from images to logits as `jax.export` serialises it, with
                           the weights, for CPU, TPU and CUDA and any number of images
    model.json             its input and output: preprocessing, classes, versions
    weights.safetensors    the weights by their paths in this package
                           (`params/layer1/0/conv1/kernel`)
    README.md              the model card: provenance, metrics, configuration, how to run it

To run it: `pip install jax flatbuffers`, then

    f = jax.export.deserialize(pathlib.Path("DIR/model.stablehlo").read_bytes()).call
    logits = f(images)  # uint8 [batch, height, width, 3]; it normalises them itself

Before it is written, the exported program is run here on two batches of different sizes, and its
logits must agree with the model's.

`--hub FOLDER` writes what users of PyTorch, timm and Hugging Face expect:

    model.safetensors      the weights by PyTorch's names; timm's, where timm has the model
    config.json            timm's description of the model, its images and its classes
    modeling_noah.py       the model in PyTorch (linear and NOAH heads); needs torch and safetensors
    README.md              the model card with the hub's metadata, and metrics that were measured

`noah_jax.load_model("FOLDER")` and every `--checkpoint` read it back, bit for bit. `--push
USER/NAME` uploads these files in one commit, with or without `--hub`; the token is that of `hf auth
login` or HF_TOKEN.

`--onnx FILE.onnx` writes the function from images to logits as ONNX, for onnxruntime and others.
Its input `images` is uint8 [batch, height, width, 3], for any batch; it normalises them itself. Its
metadata say how images are prepared, and the classes. Before it is written, onnxruntime's logits
must agree with the model's on the first images of the training's evaluation, or on those that come
with this package. It needs jax2onnx, which is installed by itself: pip install --no-deps jax2onnx.

Each folder is new or empty, each file is new, and each appears whole or not at all. The exit code
is 0, or 1 after an error.
"""

import argparse
import sys

from noah_jax.cli import Parser, program
from noah_jax.errors import UsageError
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
    add = parser.add_argument
    add(
        "--output",
        metavar="DIR",
        type=local_path,
        help="a new or empty folder for the program that JAX runs",
    )
    add(
        "--hub",
        metavar="FOLDER",
        type=local_path,
        help="a new or empty folder for PyTorch, timm and Hugging Face",
    )
    add("--push", metavar="USER/NAME", help="upload that folder's files to a repository of the hub")
    add("--private", action="store_true", help="make the repository private, if it is new")
    add("--onnx", metavar="FILE", type=local_path, help="a new file NAME.onnx")
    add(
        "--licence",
        metavar="ID",
        help="licence in the card of --hub and --push, such as apache-2.0; by default that of"
        " published weights",
    )
    return parser


def _export(arguments: argparse.Namespace) -> int:
    for_hub = arguments.hub is not None or arguments.push is not None
    if not for_hub and arguments.output is None and arguments.onnx is None:
        raise UsageError(
            "nothing to write: give --output DIR, --hub FOLDER, --push USER/NAME or --onnx FILE"
        )
    if arguments.private and arguments.push is None:
        raise UsageError("--private is for --push")
    if arguments.licence is not None and not for_hub:
        raise UsageError("--licence is for --hub and --push")
    choice = dict(ema=arguments.ema, settings=preprocessing_settings(vars(arguments)))
    if for_hub:
        from noah_jax.export.hub_folder import export_hub

        export_hub(
            arguments.checkpoint,
            arguments.hub,
            licence=arguments.licence,
            push=arguments.push,
            private=arguments.private,
            **choice,
        )
    if arguments.onnx is not None:
        from noah_jax.export.onnx_file import export_onnx

        export_onnx(arguments.checkpoint, arguments.onnx, **choice)
    if arguments.output is not None:
        from noah_jax.export.program import export

        export(arguments.checkpoint, arguments.output, **choice)
    return 0


main = program(_export, _parser)

if __name__ == "__main__":
    sys.exit(main())
