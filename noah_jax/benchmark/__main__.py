"""Measures the speed of what is asked for.

    python -m noah_jax.benchmark --what model --model noah_resnet50 [--dtype bfloat16] [--batch 1,8]
    python -m noah_jax.benchmark --what eval [--models NAME,NAME...] [--batch 8] [--rounds 7]
    python -m noah_jax.benchmark --what input [--folder PATH] [--batch 64] [--rounds 7]
    python -m noah_jax.benchmark --what host --config configs/quickstart.py [--steps 100]
    python -m noah_jax.benchmark --what head [--models NAME,NAME...] [--heads NAME,NAME...]
        [--topology v5e:1x1]

`model`: parameters, FLOPs, latency and memory of a model with the NOAH and with a linear head.
`eval`: images a second that models evaluate, and that PyTorch does where it is installed.
`input`: images a second that get ready for training, and that PyTorch's loader delivers.
`host`: what a run costs besides the compiled step.
`head`: what the NOAH head costs beside a linear one, here or in the train step of a TPU.
"""

import importlib
import sys

from noah_jax.console import fail
from noah_jax.errors import UsageError

# Where the `main(argv)` of each is; imported when it is asked for.
_BENCHMARKS = {
    "eval": "noah_jax.benchmark.evaluation",
    "input": "noah_jax.benchmark.input",
    "host": "noah_jax.benchmark.host",
    "head": "noah_jax.benchmark.head",
    "model": "noah_jax.benchmark.model",
}


def main(argv: list[str]) -> int:
    """Runs the benchmark the command line asks for; returns the exit code."""
    program, *arguments = argv
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return 0
    try:
        what, rest = _split_what(arguments)
        importlib.import_module(_BENCHMARKS[what]).main([program, *rest])
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
