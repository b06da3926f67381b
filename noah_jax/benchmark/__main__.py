"""Measures the speed of models, heads, train steps, input, evaluation or the training loop.

    python -m noah_jax.benchmark --what model --model noah_resnet50
    python -m noah_jax.benchmark --what head [--topology v5e:1x1]
    python -m noah_jax.benchmark --what step --models resnet50,deit_tiny_patch16_224
    python -m noah_jax.benchmark --what eval
    python -m noah_jax.benchmark --what input
    python -m noah_jax.benchmark --what input --against-step --config deit.py --machine h100:8
    python -m noah_jax.benchmark --what host --config configs/quickstart.py

`--what NAME --help` shows the options of one benchmark alone.
"""

import argparse
import importlib
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from noah_jax.cli import Parser, as_typed, positive, run
from noah_jax.errors import InputError, UsageError
from noah_jax.paths import local_path

DTYPES = ("float32", "bfloat16", "float16")
_PROGRAM = "python -m noah_jax.benchmark"


class _Benchmark(NamedTuple):
    """One benchmark.

    Attributes:
      module: Module with `measure_and_print(args)`; imported only when it is asked for.
      summary: What it measures, as a sentence.
      add_options: Adds its options to a parser.
    """

    module: str
    summary: str
    add_options: Callable[[Parser], None]


def _folder(text: str) -> pathlib.Path:
    return pathlib.Path(local_path(text))


def _names(text: str) -> list[str]:
    return text.split(",")


class _Names(argparse.Action):
    """Takes names that commas or spaces part."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, [name for value in values for name in _names(value)])


def _batches(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return positive(width), positive(height)


def _option(text: str) -> tuple[str, str | bool]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise InputError(text)
    # XLA takes True and False of JAX, and no word for them.
    return name, {"true": True, "false": False}.get(value.lower(), value)


def _model_options(parser: Parser) -> None:
    parser.add_argument("--model", required=True, metavar="NAME", help="a registered model")
    parser.add_argument("--dtype", default="float32", help="compute dtype (%(default)s)")
    parser.add_argument(
        "--batch", default="1,8,32", type=_batches, metavar="N,N...", help="batches (%(default)s)"
    )
    parser.add_argument(
        "--image-size", type=positive, metavar="PIXELS", help="by default the published size"
    )
    parser.add_argument("--rounds", type=positive, default=7, help="measurements (%(default)s)")


def _eval_options(parser: Parser) -> None:
    parser.add_argument(
        "--models", type=_names, metavar="NAME,NAME...", help="by default one of each family"
    )
    parser.add_argument("--batch", type=positive, default=8, help="images a call (%(default)s)")
    parser.add_argument("--rounds", type=positive, default=7, help="measurements (%(default)s)")


def _input_options(parser: Parser) -> None:
    parser.add_argument(
        "--folder", type=_folder, help="class folders; by default photographs made for this"
    )
    parser.add_argument(
        "--photograph-size",
        type=_size,
        default=(500, 375),
        metavar="WIDTHxHEIGHT",
        help="size of these photographs in pixels (500x375)",
    )
    parser.add_argument("--recipe", choices=("cnn", "deit"), help="by default both")
    parser.add_argument("--batch", type=positive, default=64, help="images a batch (%(default)s)")
    parser.add_argument("--rounds", type=positive, default=5, help="measurements (%(default)s)")
    parser.add_argument(
        "--json", metavar="FILE", type=local_path, help="write every turn to this file besides"
    )
    parser.add_argument(
        "--against-step",
        action="store_true",
        help="hold what the cores give for --config against what its train step takes, and say what"
        " closes the gap",
    )
    parser.add_argument(
        "--machine",
        metavar="KIND:DEVICES",
        help="with --against-step: another machine than this one, such as h100:8, v5e:4x4 or v6e:8",
    )
    parser.add_argument(
        "--step-images-per-second",
        type=positive,
        metavar="N",
        help="with --against-step: what the step takes, if you know it",
    )
    parser.add_argument(
        "--cores", type=positive, metavar="N", help="with --against-step: cores of the machine"
    )
    parser.add_config()


def _host_options(parser: Parser) -> None:
    parser.add_config()
    parser.add_argument(
        "--steps", type=positive, default=100, help="steps of a measurement (%(default)s)"
    )


def _head_options(parser: Parser) -> None:
    parser.add_argument(
        "--models",
        nargs="+",
        action=_Names,
        metavar="NAME",
        help="models on whose maps the heads are measured",
    )
    parser.add_argument(
        "--heads",
        nargs="+",
        action=_Names,
        metavar="NAME",
        help="kinds of heads such as noah csra map, or implementations of the NOAH head, measured"
        " beside a linear head; those that do not run here are named",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the features; by default float32")
    parser.add_argument(
        "--batch", type=positive, help="images; by default 32, with --topology 128 a chip"
    )
    parser.add_argument("--rounds", type=positive, default=5, help="measurements (%(default)s)")
    parser.add_argument(
        "--topology",
        metavar="MACHINE",
        help="compile whole train steps for this machine instead, such as v5e:1x1 or h100:1",
    )
    parser.add_argument(
        "--depth", type=positive, help="with --topology: blocks of the backbone, to compile faster"
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="with --topology: print where the cycles of a step differ from the linear head's",
    )


def _step_options(parser: Parser) -> None:
    parser.add_argument(
        "--models",
        nargs="+",
        action=_Names,
        metavar="NAME",
        help="backbones; by default one of each kind",
    )
    parser.add_argument(
        "--heads",
        nargs="+",
        action=_Names,
        default=["linear", "noah"],
        metavar="NAME",
        help="kinds of heads, or implementations of the NOAH head such as pallas (linear noah)",
    )
    parser.add_argument("--batch", type=positive, default=256, help="images a step (%(default)s)")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="bfloat16", help="compute dtype (%(default)s)"
    )
    parser.add_argument(
        "--image-size", type=positive, metavar="PIXELS", help="by default the published size"
    )
    parser.add_argument("--rounds", type=positive, default=5, help="measurements (%(default)s)")
    parser.add_argument(
        "--compiler-option",
        type=_option,
        action="append",
        default=[],
        dest="compiler_options",
        metavar="NAME=VALUE",
        help="an option of XLA for the step, such as xla_gpu_experimental_enable_conv_fusion=true;"
        " may be given several times",
    )
    parser.add_argument(
        "--without-pytorch", action="store_true", help="leaves out timm's models in PyTorch"
    )


BENCHMARKS = {
    "model": _Benchmark(
        "noah_jax.benchmark.model",
        "Compares a model with the NOAH head and with a linear head: parameters, FLOPs, latency,"
        " memory.",
        _model_options,
    ),
    "head": _Benchmark(
        "noah_jax.benchmark.head",
        "Measures what the NOAH head costs beside a linear head, alone on this machine or in the"
        " train step of another.",
        _head_options,
    ),
    "step": _Benchmark(
        "noah_jax.benchmark.step",
        "Measures whole train steps on this machine's first device, beside timm's models in PyTorch"
        " where both are installed.",
        _step_options,
    ),
    "eval": _Benchmark(
        "noah_jax.benchmark.evaluation",
        "Measures how many images a second models evaluate, beside PyTorch where it is installed.",
        _eval_options,
    ),
    "input": _Benchmark(
        "noah_jax.benchmark.input",
        "Measures how many images a second get ready for training, beside other loaders.",
        _input_options,
    ),
    "host": _Benchmark(
        "noah_jax.benchmark.host",
        "Measures what a training run costs the host besides the compiled step.",
        _host_options,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark that the command line asks for; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    # The options depend on `--what`, so they are parsed in `_start`, where mistakes are one line.
    return run(lambda _: _start(words), Parser(_PROGRAM), [])


def _start(words: Sequence[str]) -> int:
    chooser = Parser(_PROGRAM, add_help=False)
    chooser.add_argument("--what", choices=BENCHMARKS)
    chooser.add_argument("-h", "--help", action="store_true")
    chosen, rest = chooser.parse_known_args(words)
    if chosen.what is None:
        if not chosen.help:
            choices = " or ".join(f"--what {name}" for name in BENCHMARKS)
            raise UsageError(f"say what to measure: {choices}")
        print(_overview())
    elif chosen.help:
        _parser(chosen.what).print_help()
    else:
        args = _parser(chosen.what).parse_args(rest)
        module = _against_step(args) if chosen.what == "input" else None
        importlib.import_module(module or BENCHMARKS[chosen.what].module).measure_and_print(args)
    return 0


def _against_step(args: argparse.Namespace) -> str | None:
    """Returns the module of `--what input --against-step` if that is asked for.

    Raises:
      UsageError: If an option belongs to the other form of the benchmark.
    """
    if args.against_step:
        if args.folder is not None or args.recipe is not None:
            raise UsageError(
                "--against-step takes images and recipe from --config, so --folder and --recipe do"
                " not go with it; --config.dataset=folder:PATH names class folders"
            )
        return "noah_jax.benchmark.against_step"
    names = ("config", "machine", "step_images_per_second", "cores", "overrides")
    if any(getattr(args, name) for name in names):
        raise UsageError(
            "--config, --machine, --step-images-per-second and --cores go with --against-step"
        )
    return None


def _parser(name: str) -> Parser:
    benchmark = BENCHMARKS[name]
    parser = Parser(f"{_PROGRAM} --what {name}", benchmark.summary)
    benchmark.add_options(parser)
    return parser


def _overview() -> str:
    """Returns the help of the program with the options of every benchmark."""
    assert __doc__ is not None
    return "\n".join(
        [as_typed(__doc__.strip()), *(f"\n{_parser(n).format_help()}" for n in BENCHMARKS)]
    )


if __name__ == "__main__":
    sys.exit(main())
