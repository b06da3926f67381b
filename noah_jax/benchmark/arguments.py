"""Command lines of the benchmarks: one line for a mistake."""

import argparse
from typing import NoReturn

from noah_jax.config import UsageError


class Parser(argparse.ArgumentParser):
    """Raises a UsageError where argparse would print and exit."""

    def __init__(self, what: str):
        super().__init__(prog=f"--what {what}", add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def positive(text: str) -> int:
    """A whole number above 0."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value
