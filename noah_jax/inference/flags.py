"""The flags that the programs for trained models share; imports nothing heavy."""

import argparse

from noah_jax.cli import positive


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds `--checkpoint` and `--ema`, for programs that use one model."""
    parser.add_argument(
        "--checkpoint",
        metavar="PATH",
        required=True,
        help="a run's or converted folder, RUN/checkpoints/STEP, or a PyTorch file",
    )
    add_ema(parser)


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
