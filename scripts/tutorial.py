"""A walk through this project: train, evaluate, predict, convert, explain and export.

    python scripts/tutorial.py
    python scripts/tutorial.py --workdir /tmp/tutorial --quick

Trains a small ResNet with the NOAH head on the embedded sample for one epoch, then uses it. Every
step prints what it does and the command that does the same. It takes about three minutes on two
CPU cores. All results lie in --workdir (runs/tutorial); a second start continues there, or uses the
trained model. --quick trains a tiny Mixer for a few steps, in which it learns little.

The exit code is 0, or that of the first program that fails.
"""

from noah_jax.cli import Parser, run, show_help

if __name__ == "__main__":
    show_help(__doc__)  # before the imports that take seconds

import argparse
import importlib.util
import os
import pathlib
import shlex
import sys
from collections.abc import Callable, Sequence

import jax
import jax.export
import numpy as np

import noah_jax
from noah_jax.convert.__main__ import main as convert
from noah_jax.data.decoding import decode
from noah_jax.data.sources import open_eval_source
from noah_jax.evaluate.__main__ import main as evaluate
from noah_jax.explain.__main__ import main as explain
from noah_jax.export.__main__ import main as export
from noah_jax.inference.trained import load_one
from noah_jax.predict.__main__ import main as predict
from noah_jax.train import main as train

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
IMAGES = 4  # the number of test images that become files


class _Failed(Exception):
    """Raised if a program failed, after it printed the reason; holds the exit code."""


def tutorial(workdir: pathlib.Path, *, quick: bool) -> None:
    """Runs all steps, one after another.

    Args:
      workdir: The folder for all results; made if it does not exist.
      quick: Train a tiny Mixer for a few steps instead of a ResNet for an epoch.
    """
    trained = str(workdir / "run")

    _say(
        "1. Train. A configuration is a Python file; the command line changes single keys of it.",
        "The run's folder gets checkpoints, metrics and results.",
    )
    config, changes = "quickstart.py", ("epochs=1",)
    if quick:
        config = "sample.py:noah_mixer"
        changes = ("epochs=0.1", "optim.warmup_epochs=0.0", "model.depth=1")
    arguments = ["--config", os.path.relpath(CONFIGS / config), "--workdir", trained]
    arguments += [f"--config.{change}" for change in changes]
    _program(train, "-m noah_jax.train", arguments)

    _say("2. Evaluate. Every test image counts once; the report has the accuracy of each class.")
    arguments = ["--checkpoint", trained, "--report", str(workdir / "report")]
    _program(evaluate, "-m noah_jax.evaluate", arguments)

    folder = workdir / "images"
    images = _write_images(folder)
    _say(
        f"3. Predict. The first {IMAGES} test images are now files in {folder}, named after what",
        "they show. These are the three most likely classes of each:",
    )
    arguments = [str(folder), "--checkpoint", trained, "--top", "3"]
    _program(predict, "-m noah_jax.predict", arguments)

    _say(
        "4. Convert. The weights go into a file with the names and layouts of the original PyTorch",
        "code, and from there back into a folder. Such a file may not contain the image size, and",
        "does not say how images were prepared, so the command does.",
    )
    file, back = str(workdir / "weights.safetensors"), str(workdir / "converted")
    name = "convert_torch_weights.py"
    _program(convert, name, ["--to-torch", trained, file, "--overwrite"])
    settings = ["image_size=28", "mean=0.286", "std=0.353", "resize=cover"]
    _program(convert, name, [file, back, "--set", *settings, "--overwrite"])
    pixels = _pixels(trained, images)
    before, after = _logits(trained, pixels), _logits(back, pixels)
    if not np.array_equal(before, after):
        raise ValueError(f"the logits of {trained} and {back} differ")
    _say(f"The logits of the {IMAGES} images are the same before and after, bit for bit.")

    _say(
        "5. Explain. The head has a separate attention for every class over the positions of the",
        "last feature map, here 4 x 4. The contributions of all positions add up to the logit.",
    )
    output = ["--output", str(workdir / "explanation"), "--overview", str(workdir / "overview.png")]
    arguments = ["--checkpoint", trained, "--image", str(folder), *output]
    _program(explain, "-m noah_jax.explain", arguments)

    _say("6. Export. The result is one file with the weights, which JAX runs without this package.")
    if importlib.util.find_spec("flatbuffers") is None:
        _say("This needs flatbuffers, which is not installed: pip install -e '.[export]'")
        return
    exported = workdir / "exported"
    if not exported.exists():
        arguments = ["--checkpoint", trained, "--output", str(exported)]
        _program(export, "-m noah_jax.export", arguments)
    artifact = jax.export.deserialize((exported / "model.stablehlo").read_bytes())
    difference = np.abs(artifact.call(pixels) - before).max()
    _say(f"Loaded from {exported}, its logits are within {difference:.0e} of the model's.")


def _write_images(folder: pathlib.Path) -> list[str]:
    source = open_eval_source("fashion_mnist_sample")
    folder.mkdir(exist_ok=True)
    files = []
    for i in range(IMAGES):
        png, label = source[i]
        name = source.class_names[label].replace("/", "-").replace(" ", "_")
        files.append(str(folder / f"{i}_{name}.png"))
        pathlib.Path(files[-1]).write_bytes(png)
    return files


def _pixels(trained: str, files: Sequence[str]) -> np.ndarray:
    """The images as the model's input, uint8 `[images, height, width, 3]`."""
    transform = load_one(trained).preprocessing.transform()
    return np.stack([transform(decode(pathlib.Path(file).read_bytes(), file)) for file in files])


def _logits(path: str, pixels: np.ndarray) -> np.ndarray:
    """The logits of uint8 images, computed as in your own code."""
    model, params, stats = noah_jax.load_model(path)
    return np.asarray(model.predict(params, stats, pixels))


def _say(*lines: str) -> None:
    print("", *lines, sep="\n", flush=True)


def _program(main: Callable[[list[str]], int], name: str, arguments: list[str]) -> None:
    """Runs a program in this process, which saves its start-up time; raises if it fails."""
    print(f"$ python {name} {shlex.join(arguments)}", flush=True)
    if code := main(arguments):
        raise _Failed(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Walks through everything; returns the exit code."""
    parser = Parser("python scripts/tutorial.py", __doc__)
    add = parser.add_argument
    add("--workdir", metavar="DIR", default="runs/tutorial", help="folder for all results")
    add("--quick", action="store_true", help="train a tiny model for a few steps")
    return run(_tutorial, parser, argv)


def _tutorial(arguments: argparse.Namespace) -> int:
    try:
        tutorial(pathlib.Path(arguments.workdir), quick=arguments.quick)
    except _Failed as failed:
        return failed.args[0]
    _say(f"All results lie in {arguments.workdir}. docs/index.md explains the rest.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
