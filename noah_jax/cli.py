"""Reads the command lines of the programs: help at once, one line for a mistake.

Nothing here imports JAX. A program parses first and imports what takes seconds after that.
"""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from noah_jax import interrupts
from noah_jax.console import fail
from noah_jax.errors import (
    InputError,
    MissingPackageError,
    NoahError,
    UsageError,
    machine_error,
    near_matches,
)
from noah_jax.platforms import choose_platform

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# Modules that come with this package, unless it was installed without its dependencies.
BASE = {
    *("absl", "etils", "flax", "jax", "ml_collections", "ml_dtypes", "numpy", "orbax"),
    "safetensors",
}
# The extra of this package that brings a module which the head alone does not need.
EXTRAS = {
    "array_record": "train",
    "clu": "train",
    "fsspec": "train",
    "google_crc32c": "train",
    "grain": "train",
    "llvmlite": "train",
    "matplotlib": "train",
    "numba": "train",
    "optax": "train",
    "PIL": "train",
    "psutil": "train",
    "scipy": "train",
    "simplejpeg": "train",
    "tensorboardX": "train",
    "tensorflow_datasets": "train",
    "flatbuffers": "export",
    "cv2": "approximate",
    "datasets": "hf",
    "gdown": "released",
    "huggingface_hub": "hub",
    "onnxruntime": "onnx",
    "mlflow": "mlflow",
    "trackio": "trackio",
    "wandb": "wandb",
    "nvidia": "dali",
    "torch": "torch",
}

# What opens remote paths, and the package that brings it.
FILE_SYSTEMS = {"gcsfs": "gcsfs", "s3fs": "s3fs"}

# How a help text starts a program. The command `noah-jax` puts its own name here.
_MODULE = "python -m noah_jax."
_started_by = _MODULE


def set_command(command: str) -> None:
    """Makes help texts name the command that the user typed.

    Args:
      command: What stands before a program's name, such as `noah-jax`.
    """
    global _started_by
    _started_by = f"{command} "


def as_typed(text: str) -> str:
    """Returns a help text with `python -m noah_jax.NAME` as the user started the program."""
    return text.replace(_MODULE, _started_by)


class Parser(argparse.ArgumentParser):
    """Parses the command line of a program; raises where argparse would print and exit.

    Args:
      prog: How the program is started, such as `python -m noah_jax.predict`.
      description: What the program does, with examples; printed as it is.
      **arguments: Other arguments of `argparse.ArgumentParser`.
    """

    def __init__(self, prog: str, description: str | None = None, **arguments: Any) -> None:
        super().__init__(
            prog=as_typed(prog),
            description=description and as_typed(description),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **arguments,
        )
        self._takes_config = False
        self._several: dict[str, Callable[[str], bool]] = {}

    def add_config(self, **arguments: Any) -> None:
        """Adds `--config FILE[:VARIANT]` and any number of `--config.KEY=VALUE`.

        What is parsed then has two attributes more: `config`, what `--config` says, and
        `overrides`, the words that set single keys. `load_config` makes the configuration of them.

        Args:
          **arguments: Arguments of `add_argument` for `--config`, such as `nargs="+"`.
        """
        self._takes_config = True
        self.add_argument(
            "--config",
            metavar="FILE[:VARIANT]",
            **{
                "help": "the configuration, such as quickstart.py or resnet.py:noah_resnet50: a"
                " file, or one of those that come with the package",
                **arguments,
            },
        )
        self.add_argument(
            "--config.KEY",
            metavar="VALUE",
            dest="overrides",
            default=[],
            help="sets a key, such as --config.model.dtype=bfloat16, or --config.init_from=None;"
            " the keys are listed below",
        )

    def add_several(self, flag: str, is_value: Callable[[str], bool], **arguments: Any) -> None:
        """Adds a flag that takes all values behind it, and may be given several times.

        argparse's own `nargs="+"` would take the program's other words too.

        Args:
          flag: The flag.
          is_value: Whether a word behind it is one of its values.
          **arguments: Arguments of `add_argument` for one value.
        """
        self._several[flag] = is_value
        self.add_argument(flag, action="append", **arguments)

    def format_help(self) -> str:
        text = super().format_help()
        if not self._takes_config:
            return text
        from noah_jax.config import default_config, flat_config  # it imports ml_collections

        keys = [f"  {key} = {value!r}" for key, value in flat_config(default_config()).items()]
        head = "keys of the configuration and their defaults (noah_jax/config.py explains them):"
        return "\n".join([text, head, *keys, ""])

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        words = list(sys.argv[1:] if args is None else args)
        overrides: list[str] = []
        words = _repeat_flags(words, self._several)
        if self._takes_config:
            words, overrides = _split_overrides(words)
        parsed, rest = super().parse_known_args(words, namespace)
        if self._takes_config:
            parsed.overrides = overrides
        return parsed, rest

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        parsed, rest = self.parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}{self._meant(rest)}")
        return parsed

    def _meant(self, rest: Sequence[str]) -> str:
        """Says which option or key of the configuration an unknown argument may mean."""
        flag = next((word.partition("=")[0] for word in rest if word.startswith("-")), None)
        if flag is None:
            return ""
        options = [option for option in self._option_string_actions if option != "--config.KEY"]
        near = near_matches(flag, options, cutoff=0.75)
        if self._takes_config:
            from noah_jax.config_names import similar_key  # these import ml_collections
            from noah_jax.config_values import RULES

            key = similar_key(flag.lstrip("-"), RULES)
            if key is not None and not near:
                near = [f"--config.{key}=..."]
        return f"; did you mean {near[0]}?" if near else ""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; --help tells more" if self.add_help else message)


def _repeat_flags(words: Sequence[str], several: Mapping[str, Callable[[str], bool]]) -> list[str]:
    """Puts its flag before each of several values: `--set a=1 b=2` as `--set=a=1 --set=b=2`."""
    repeated: list[str] = []
    flag = None
    for word in words:
        if flag is not None and several[flag](word):
            if repeated[-1] == flag:
                repeated.pop()
            repeated.append(f"{flag}={word}")
            continue
        name = word.partition("=")[0]
        flag = name if name in several else None
        repeated.append(word)
    return repeated


def _split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits a command line into the words argparse knows and those that set single keys."""
    others, overrides = [], []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not word.startswith(("--config.", "--noconfig.")):
            others.append(word)
            continue
        overrides.append(word)
        # `--config.KEY VALUE` in two words. A value may be a negative number.
        value = words[position] if position < len(words) else "--"
        if word.startswith("--config.") and "=" not in word and not value.startswith("--"):
            overrides.append(value)
            position += 1
    return others, overrides


def load_config(parsed: argparse.Namespace, config: str | None = None) -> "ConfigDict":
    """Loads the configuration that a command line names.

    Args:
      parsed: What a parser with `add_config` parsed.
      config: One of several values of `--config`; by default the only one.

    Raises:
      UsageError: If no file is named or found, or a key or its value does not fit.
    """
    from noah_jax.config_flags import parse_config

    name = parsed.config if config is None else config
    words = [f"--config={name}"] if name is not None else []
    return parse_config([*words, *parsed.overrides])


def positive(text: str) -> int:
    """Parses a whole number above 0, for `add_argument(type=positive)`.

    Raises:
      InputError: If it is none.
    """
    value = int(text)
    if value < 1:
        raise InputError(text)
    return value


def show_help(text: str) -> None:
    """Prints a program's help and ends the program, if the command line asks for it.

    For programs that import what takes seconds before they parse.
    """
    if "--help" in sys.argv or "-h" in sys.argv:
        print(as_typed(text.strip()))
        raise SystemExit(0)


def run(
    program: Callable[[argparse.Namespace], int],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
) -> int:
    """Parses the command line and runs a program on it.

    Args:
      program: Takes what was parsed and returns the exit code.
      parser: The parser of the command line.
      argv: The arguments, without the program's name; `None` takes those of the process.

    Returns:
      The exit code; see `exit_code`.
    """
    return exit_code(lambda: program(parser.parse_args(argv)))


def exit_code(program: Callable[[], int]) -> int:
    """Runs a program to its end, whatever that is.

    What a user can mend (`NoahError`, a missing package) is one line on standard error, and with
    NOAH_TRACEBACK=1 in the environment a traceback. Any other exception is a bug and always shows
    its traceback. Ctrl-C and SIGTERM end the process, see `noah_jax.interrupts`.

    Returns:
      The exit code: the program's own, 1 after an error, 130 after Ctrl-C, 75 after SIGTERM, 141
      if nobody reads the output any more (as in `... | head`).
    """
    _take_any_bytes()
    choose_platform(os.environ)
    with interrupts.listening():
        try:
            return _exit_code(program)
        finally:
            interrupts.wait_if_ending()


def _take_any_bytes() -> None:
    """Lets file names in any bytes come in, and escapes letters that the locale lacks."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(io.UnsupportedOperation):  # Somebody has read from it already.
                stream.reconfigure(errors=errors)


def _exit_code(program: Callable[[], int]) -> int:
    try:
        return program()
    except NoahError as error:
        interrupts.wait_if_ending()
        if "NOAH_TRACEBACK" in os.environ:
            raise
        return fail(error)
    except ImportError as error:
        return _fail_or_raise(missing_package(error), error)
    except KeyboardInterrupt:
        return interrupts.INTERRUPTED
    except BrokenPipeError:
        # Python would complain once more when it closes standard output at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        return _fail_or_raise(machine_error(error), error)


def _fail_or_raise(explained: NoahError | None, error: Exception) -> int:
    """Fails with the explanation; raises the error if there is none, or its traceback is asked."""
    interrupts.wait_if_ending()
    if explained is None or "NOAH_TRACEBACK" in os.environ:
        raise error
    return fail(explained)


class Main(Protocol):
    """The entry of a program: takes the arguments, without its name, returns the exit code."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def program(
    work: Callable[[argparse.Namespace], int], make_parser: Callable[[], argparse.ArgumentParser]
) -> Main:
    """Makes a program's `main`; see `run`.

    Args:
      work: Takes what was parsed and returns the exit code.
      make_parser: Makes the parser of the command line.
    """

    def main(argv: Sequence[str] | None = None) -> int:
        return run(work, make_parser(), argv)

    return main


def missing_package(error: ImportError) -> MissingPackageError | None:
    """Says how to install a module; returns `None` if this package does not depend on it."""
    module = (error.name or "").partition(".")[0]
    if module in EXTRAS:
        install = f"noah-jax[{EXTRAS[module]}]"
    elif module in BASE:
        install = "noah-jax"
    elif module in FILE_SYSTEMS:  # for gs:// paths
        install = FILE_SYSTEMS[module]
    else:
        # fsspec puts advice of its own in place of the error that names the module.
        cause = error.__cause__ or error.__context__
        return missing_package(cause) if isinstance(cause, ImportError) else None
    return MissingPackageError(f"{module} is not installed; pip install '{install}'")
