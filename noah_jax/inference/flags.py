"""The flags that the programs for trained models share; imports nothing heavy."""

import argparse
from typing import Any

from noah_jax.cli import Parser, positive
from noah_jax.paths import local_path

# What every flag for a trained model takes.
CHECKPOINT_HELP = (
    "a run's or converted folder, RUN/checkpoints/STEP, a PyTorch file, hf://USER/NAME[@REVISION],"
    " released://NAME or https://.../NAME-CHECKSUM.pth"
)
_SETTINGS = ("mean", "std", "resize", "crop", "interpolation")


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds `--checkpoint` and `--ema`, for programs that use one model."""
    parser.add_argument(
        "--checkpoint",
        metavar="PATH",
        type=local_path,
        required=True,
        help=CHECKPOINT_HELP,
    )
    add_ema(parser)


def add_preprocessing(parser: Parser) -> None:
    """Adds the flags that replace what is stored with the weights; see `preprocessing_settings`."""
    for flag, metavar, meaning in (
        (
            "--mean",
            "X[,X,X]",
            "mean that is subtracted from pixels in 0..1: one, or red,green,blue",
        ),
        ("--std", "X[,X,X]", "standard deviation by which the pixels are divided, likewise"),
        (
            "--resize",
            "N",
            "shorter side in pixels after resizing; cover: as small as the crop;"
            " squash: the whole image as large as the crop",
        ),
        ("--crop", "N[,N]", "pixels of the centre crop, one side or height,width"),
        ("--interpolation", "NAME", "nearest, nearest-exact, bilinear, bicubic, lanczos, ..."),
    ):
        parser.add_several(
            flag, _is_number, metavar=metavar, help=f"{meaning}; by default the model's"
        )


def preprocessing_settings(arguments: dict[str, Any]) -> dict[str, str]:
    """Takes what `add_preprocessing` added out of the parsed arguments.

    Args:
      arguments: What was parsed, by name; the settings are removed.

    Returns:
      The settings that were given, see `noah_jax.data.preprocessing.check_setting`.
    """
    given = {key: arguments.pop(key) for key in _SETTINGS}
    return {key: ",".join(values) for key, values in given.items() if values is not None}


def _is_number(word: str) -> bool:
    return word.strip().lstrip("+-.").replace(".", "").isdigit()


def add_ema(parser: argparse.ArgumentParser) -> None:
    """Adds `--ema`."""
    parser.add_argument(
        "--ema", action="store_true", help="use the exponential moving average of the weights"
    )


def add_class_names(parser: argparse.ArgumentParser) -> None:
    """Adds `--class-names`."""
    parser.add_argument(
        "--class-names",
        metavar="FILE",
        type=local_path,
        help="a text file with the name of one class a line, in the order of the labels",
    )


def add_batches(parser: argparse.ArgumentParser, batch_size: int) -> None:
    """Adds `--batch`, with a default, and `--threads`; parsed as batch_size and num_threads."""
    add = parser.add_argument
    add(
        "--batch",
        dest="batch_size",
        type=positive,
        default=batch_size,
        metavar="N",
        help=f"images at a time; by default {batch_size}",
    )
    add(
        "--threads",
        dest="num_threads",
        type=positive,
        metavar="N",
        help="decoding threads; by default one a core",
    )
