"""Reads `--sweep KEY=VALUE,VALUE ...`: the keys of the configuration that vary."""

import itertools
from collections.abc import Sequence

from noah_jax.errors import UsageError

# The values of each swept key, as the user typed them.
Sweep = dict[str, list[str]]

_OPENING, _CLOSING, _QUOTES = "([{", ")]}", "'\""
# Keys that other options are for.
_OTHER_OPTIONS = {"seed": "--seeds", "model.head": "--heads"}


def parse_sweep(words: Sequence[str], overrides: Sequence[str] = ()) -> Sweep:
    """Reads what follows `--sweep`.

    >>> parse_sweep(["config.model.head_num=1,2", "config.data.area=(0.1,1),(0.5,1)"])
    {'model.head_num': ['1', '2'], 'data.area': ['(0.1,1)', '(0.5,1)']}

    Args:
      words: `config.KEY=VALUE,VALUE` each. A comma inside of brackets or quotes does not separate
        values.
      overrides: The `--config.KEY=VALUE` words of the command line.

    Raises:
      UsageError: If a word has another form, or a key or a value is there twice.
    """
    sweep: Sweep = {}
    fixed = {word.removeprefix("--config.").partition("=")[0] for word in overrides}
    for word in words:
        key, _, text = word.partition("=")
        key = key.removeprefix("config.")
        values = _split(text)
        if not key or not all(values):
            raise UsageError(
                f"--sweep takes config.KEY=VALUE,VALUE,..., such as config.model.head_num=1,2,4;"
                f" got {word!r}"
            )
        if key in _OTHER_OPTIONS:
            raise UsageError(f"--sweep cannot vary {key}; {_OTHER_OPTIONS[key]} does")
        if key in sweep:
            raise UsageError(f"--sweep names {key} twice; give all its values at once")
        if key in fixed:
            raise UsageError(f"{key} is set by --config.{key} and varied by --sweep; leave one out")
        if len(set(values)) < len(values):
            raise UsageError(f"--sweep repeats a value: {word}")
        sweep[key] = values
    return sweep


def combinations(sweep: Sweep) -> list[dict[str, str]]:
    """Returns every combination of the values, the last key's values varying fastest."""
    return [dict(zip(sweep, values, strict=True)) for values in itertools.product(*sweep.values())]


def _split(text: str) -> list[str]:
    """Splits a text at the commas outside of brackets and quotes."""
    values = [""]
    depth, quote = 0, ""
    for character in text:
        if character == "," and not depth and not quote:
            values.append("")
            continue
        values[-1] += character
        if quote:
            quote = "" if character == quote else quote
        elif character in _QUOTES:
            quote = character
        else:
            depth += (character in _OPENING) - (character in _CLOSING)
    return [value.strip() for value in values]
