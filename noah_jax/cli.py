"""Command lines of the programs: help at once, one line for a mistake.

Nothing here imports JAX. A program parses first and imports what takes seconds after that.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from noah_jax.errors import InputError, UsageError


class Parser(argparse.ArgumentParser):
    """Raises a UsageError where argparse would print and exit.

    Args:
      prog: how the program is started.
      description: of the program, with examples; as it is to be printed.
      **arguments: see `argparse.ArgumentParser`.
    """

    def __init__(self, prog: str, description: str | None = None, **arguments):
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **arguments,
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; --help tells more" if self.add_help else message)


def positive(text: str) -> int:
    """A whole number above 0."""
    value = int(text)
    if value < 1:
        raise InputError(text)
    return value


def show_help(text: str) -> None:
    """Prints a program's help and ends it, where the command line asks for it.

    For programs whose flags come from the configuration, before they import what takes seconds.
    """
    if "--help" in sys.argv or "-h" in sys.argv:
        print(text.strip())
        raise SystemExit(0)


def run(
    program: Callable[[argparse.Namespace], int], parser: Parser, argv: Sequence[str] | None
) -> int:
    """Parses the command line and runs a program on it.

    What a user can mend is one line on stderr; NOAH_TRACEBACK=1 in the environment shows where
    it came from.

    Args:
      program: takes what was parsed, returns the exit code.
      parser: of the command line.
      argv: the arguments, without the program's name; `None` takes those of the process.

    Returns:
      The exit code: the program's, 1 after an error, 130 after Ctrl-C, 141 where nobody reads
      on (as in `... | head`).
    """
    try:
        return program(parser.parse_args(argv))
    except UsageError as error:
        return fail(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Python would complain of it once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        import jax

        from noah_jax.errors import CheckpointError

        expected = (ValueError, OSError, CheckpointError, jax.errors.JaxRuntimeError)
        if "NOAH_TRACEBACK" in os.environ or not isinstance(error, expected):
            raise
        return fail(error)


def fail(reason: object) -> int:
    """Prints why a program cannot go on, in one line; returns its exit code."""
    print("error:", " ".join(str(reason).split()), file=sys.stderr, flush=True)
    return 1
