"""Runs one of the programs: `noah-jax NAME ...` or `python -m noah_jax NAME ...`.

Both are the same as `python -m noah_jax.NAME ...`.
"""

import functools
import os
import runpy
import sys
from collections.abc import Sequence

from noah_jax import __version__, cli
from noah_jax.console import fail
from noah_jax.errors import did_you_mean

PROGRAMS = {
    "train": "train a model; started again, go on where the run was",
    "evaluate": "measure accuracy and loss of trained models on a dataset",
    "predict": "classify images",
    "explain": "show where the head sees a class, and what each position contributes",
    "export": "write a model for JAX alone, PyTorch and timm, ONNX, or Hugging Face's hub",
    "convert": "convert weights from PyTorch's files, and back",
    "average": "average the weights of checkpoints",
    "compare": "train several heads on the same data and compare them over seeds",
    "probe": "train heads on the frozen features of a backbone, and classify by neighbours",
    "prepare": "prepare ImageNet or other images for training",
    "parity": "check models against numbers that PyTorch computed",
    "benchmark": "measure the speed of models, heads, input, evaluation or the loop",
    "autotune": "find the fastest block sizes of the head's kernels on this machine's GPU",
    "compile": "compile the train step for machines that are not here: memory, FLOPs, traffic",
    "models": "list the models with their sizes and published accuracy",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program that the command line names; returns the exit code.

    Args:
      argv: The arguments, without the command; `None` takes those of the process.
    """
    command = os.path.basename(sys.argv[0])
    command = command if command.startswith("noah-jax") else "python -m noah_jax"
    name, *arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(_help(command))
        return 0
    if name == "--version":
        print(f"noah-jax {__version__}")
        return 0
    if name not in PROGRAMS:
        hint = did_you_mean(name, PROGRAMS) or f"; {command} --help lists the programs"
        return fail(f"there is no program {name!r}{hint}")
    cli.set_command(command)
    sys.argv = [f"{command} {name}", *arguments]
    return cli.exit_code(functools.partial(_run, name))


def _run(name: str) -> int:
    runpy.run_module(f"noah_jax.{name}", run_name="__main__", alter_sys=True)
    return 0  # a program ends by itself, with its exit code


def _help(command: str) -> str:
    width = max(map(len, PROGRAMS))
    lines = [f"  {name:{width}}  {summary}" for name, summary in PROGRAMS.items()]
    return "\n".join(
        [
            f"usage: {command} NAME ...",
            "",
            "The NOAH classification head in JAX. Programs:",
            "",
            *lines,
            "",
            f"{command} NAME --help explains a program; {command} --version prints the version.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
