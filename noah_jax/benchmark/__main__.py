"""Measures the speed of what is asked for.

    python -m noah_jax.benchmark --what eval [--models NAME,NAME...] [--batch 8] [--rounds 7]
    python -m noah_jax.benchmark --what input [--folder PATH] [--batch 64] [--rounds 7]
    python -m noah_jax.benchmark --what host --config configs/quickstart.py [--steps 100]
    python -m noah_jax.benchmark --what head [--models NAME,NAME...] [--topology v5e:1x1]

`eval`: images a second that models evaluate, and that PyTorch does where it is installed.
`input`: images a second that get ready for training, and that PyTorch's loader delivers.
`host`: what a run costs besides the compiled step.
`head`: what the NOAH head costs beside a linear one, here or in the train step of a TPU.
"""

import sys
from collections.abc import Callable

from noah_jax.benchmark import evaluation, head, host, input
from noah_jax.config import UsageError
from noah_jax.report import fail

_BENCHMARKS: dict[str, Callable[[list[str]], None]] = {
    "eval": evaluation.main,
    "input": input.main,
    "host": host.main,
    "head": head.main,
}


def main(argv: list[str]) -> int:
    """Runs the benchmark the command line asks for; returns the exit code."""
    program, *arguments = argv
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return 0
    try:
        what, rest = _split_what(arguments)
        _BENCHMARKS[what]([program, *rest])
    except (UsageError, ValueError) as error:
        return fail(error)
    return 0


def _split_what(arguments: list[str]) -> tuple[str, list[str]]:
    """The value of `--what` and the other arguments."""
    choices = " or ".join(f"--what {name}" for name in _BENCHMARKS)
    for i, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag != "--what":
            continue
        rest = arguments[i + 1 :]
        if not equals:
            value, rest = "".join(rest[:1]), rest[1:]
        if value not in _BENCHMARKS:
            raise UsageError(f"cannot measure {value!r}; say {choices}")
        return value, arguments[:i] + rest
    raise UsageError(f"say what to measure: {choices}")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
